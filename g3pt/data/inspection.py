"""A dataset, local or in a bucket: what it contains (`summary`), and whether it is intact.

Needs torch, numpy and pyarrow alone.

    python -m g3pt.data.inspection DATASET [--verify]

How: one pass over the shards. Presence, sizes, sidecars against dataset.json, numbers of rows and counts are always
compared. With `verify` every parquet is read and hashed, its ids and content hashes are compared with its sidecar, and
the fingerprint is computed again. A dataset without dataset.json is unfinished; its finished shards are inspected.

Layout: docs/concepts/contracts.md. Exit codes: 0 intact, 1 something is wrong (each fault is named, with the remedy), 2
no dataset there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.datasets import NOT_THERE, DatasetInfo, list_shards, open_dataset
from g3pt.data.records import ADDED_COLUMNS, FILL_COLUMNS, SCHEMA_VERSION, config_hash, shard_index, shard_name
from g3pt.data.storage import Location, location, open_parquet, read_many
from g3pt.data.summary import COLUMNS, Contents, plain, tensors_of
from g3pt.data.tally import Tally

USAGE = (
    "usage: python -m g3pt.data.inspection DATASET [--verify]\n\n"
    "Show what a dataset contains (a folder, or s3://bucket/path, gs://bucket/path); --verify also reads "
    "and hashes every shard."
)
AHEAD = 8  # shards of a bucket fetched at once
TELL_EVERY_S = 10.0
SHOWN_FAULTS = 20
SIDECAR_KEYS = {"rows", "counts", "splits", "failures", "content", "seconds", "bytes", "sha256", "config_sha256"}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    `remedy_removes`: the file to remove first, where preprocessing would not notice the fault.
    """

    file: str
    text: str
    remedy_removes: str = ""


class Inspection:
    """One inspection of a dataset; `run` fills `contents` and `faults`."""

    def __init__(self, path: str | Location, verify: bool = False) -> None:
        self.folder, self.verify = location(path), verify
        self.found = list_shards(self.folder)
        self.info: DatasetInfo | None = None
        self.contents, self.faults = Contents(), list[Fault]()
        self._tally = Tally()
        self._open()
        finished = [
            index for index, there in self.found.items() if there.has_sidecar and there.parquet_bytes is not None
        ]
        self.indices = sorted(self.info.shards) if self.info else finished
        self._config_sha256 = config_hash(self.info.settings) if self.info else None

    def _open(self) -> None:
        """Read dataset.json. ValueError if there is no dataset at all, or one of another schema."""
        try:
            self.info = open_dataset(self.folder)
        except ValueError as error:
            there = (self.folder / "dataset.json").exists()
            if f"reads version {SCHEMA_VERSION}" in str(error) or not (there or self.found):
                raise
            if there:
                self._fault("dataset.json", str(error).removeprefix(f"{self.folder}/dataset.json "), "dataset.json")
            elif self.verify:
                self._fault("dataset.json", "missing: preprocessing did not finish")

    def run(self) -> Iterator[int]:
        """Inspect every shard; yields their number so far after each."""
        sidecars = read_many(
            [
                self.folder / f"{shard_name(index)}.json"
                for index in self.indices
                if self.found.get(index, NOT_THERE).has_sidecar
            ]
        )
        shards = (
            read_many([self._parquet(index) for index in self.indices if self._is_there(index)], AHEAD)
            if self.verify
            else iter(())
        )
        for number, index in enumerate(self.indices, start=1):
            has_sidecar = self.found.get(index, NOT_THERE).has_sidecar
            sidecar = self._parsed(index, next(sidecars)) if has_sidecar else None
            if not has_sidecar:
                self._fault(f"{shard_name(index)}.json", "missing")
            if self._is_there(index):
                self._look_at(index, sidecar, next(shards) if self.verify else None)
            else:
                self._fault(f"{shard_name(index)}.parquet", "missing although dataset.json lists it")
            yield number
        self._compare_totals()

    def _parquet(self, index: int) -> Location:
        return self.folder / f"{shard_name(index)}.parquet"

    def _is_there(self, index: int) -> bool:
        return self.found.get(index, NOT_THERE).parquet_bytes is not None

    def _fault(self, file: str, text: str, remedy_removes: str = "") -> None:
        self.faults.append(Fault(file, text, remedy_removes))

    def _parsed(self, index: int, content: bytes) -> dict[str, Any] | None:
        """A parsed sidecar, its hashes compared with dataset.json; None if it is not usable for this shard."""
        name = f"{shard_name(index)}.json"
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found.keys() >= SIDECAR_KEYS:
            self._fault(name, "is cut off or no sidecar")
            return None
        if self.info and found["sha256"] != self.info.shards[index]:
            self._fault(name, "is of another state of its shard than dataset.json", name)
            return None  # one of the two is wrong: neither can be compared with the parquet
        if self.info and found["config_sha256"] != self._config_sha256:
            self._fault(name, "is of other settings than dataset.json")
        self.contents.spread["seconds"].add(found["seconds"].values())
        if self.verify:
            self._tally.add(index, found)
        return found

    def _look_at(self, index: int, sidecar: dict[str, Any] | None, data: bytes | None) -> None:
        """Inspect a shard that exists; `data` is its content if it is to be hashed."""
        file, faults_before = f"{shard_name(index)}.parquet", len(self.faults)
        num_bytes = self.found[index].parquet_bytes or 0
        if sidecar and num_bytes != sidecar["bytes"]:
            self._fault(file, f"has {num_bytes:,d} bytes, its sidecar says {sidecar['bytes']:,d}")
        elif sidecar and data is not None and (sha256 := hashlib.sha256(data).hexdigest()) != sidecar["sha256"]:
            self._fault(
                file,
                f"has sha256 {sha256[:16]}, its sidecar says {sidecar['sha256'][:16]}",
                f"{shard_name(index)}.json",
            )
        try:
            table = self._table(index, data)
        except (OSError, pa.ArrowException, KeyError) as error:
            if len(self.faults) == faults_before:  # else it is already reported
                self._fault(file, f"can't be read: {' '.join(str(error).split())}", f"{shard_name(index)}.json")
            return
        self.contents.add(table, num_bytes)
        if sidecar and len(self.faults) == faults_before:
            self._compare_rows(index, sidecar, table)

    def _table(self, index: int, data: bytes | None) -> pa.Table:
        """The small columns of a shard."""
        if data is None:
            with open_parquet(self._parquet(index)) as file:
                return self._columns(file)
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            return self._columns(file)

    def _columns(self, file: pq.ParquetFile) -> pa.Table:
        self.contents.tensors = self.contents.tensors or tensors_of(file.schema_arrow)
        optional = {*ADDED_COLUMNS, *FILL_COLUMNS}
        names = [name for name in COLUMNS if name in file.schema_arrow.names or name not in optional]
        return file.read(columns=names, use_threads=False)

    def _compare_rows(self, index: int, sidecar: dict[str, Any], table: pa.Table) -> None:
        """Compare the number of rows with the sidecar; with `verify` each id and content hash too."""
        file, name = f"{shard_name(index)}.parquet", f"{shard_name(index)}.json"
        if table.num_rows != sidecar["rows"]:
            self._fault(file, f"has {table.num_rows} rows, its sidecar says {sidecar['rows']}", name)
        elif self.verify:
            content = dict(zip(table["id"].to_pylist(), table["content_sha256"].to_pylist(), strict=True))
            strange = [one for one in content if self.info and shard_index(one, self.info.num_shards) != index]
            if content != sidecar["content"]:
                self._fault(file, "contains other objects than its sidecar says", name)
            elif strange:
                self._fault(
                    file,
                    f"contains {strange[0]!r}, which belongs in "
                    f"{shard_name(shard_index(strange[0], self.info.num_shards))}",
                    name,
                )

    def _compare_totals(self) -> None:
        """Compare sums with dataset.json, unless a shard's fault explains a difference, and find files
        that it doesn't name.
        """
        if self.info is None:
            return
        whole = not self.faults
        for index in sorted(self.found.keys() - self.info.shards.keys()):
            for ending, there in (("json", self.found[index].has_sidecar), ("parquet", self._is_there(index))):
                if there:
                    self._fault(f"{shard_name(index)}.{ending}", "is not in dataset.json")
        for what, said, seen in (
            ("counts", self.info.counts, self.contents.statuses),
            ("splits", self.info.splits, self.contents.splits),
        ):
            if whole and +seen != {name: count for name, count in said.items() if count}:
                self._fault("dataset.json", f"says {what} {said}, its shards contain {dict(seen)}")
        if whole and self.verify and self._tally.fingerprint(self._config_sha256 or "") != self.info.fingerprint:
            self._fault("dataset.json", "its fingerprint is not that of its shards")

    def lines(self) -> list[str]:
        """The report as lines, faults at the end."""
        info, held = self.info, self.contents
        state = (
            f"finished, fingerprint {info.fingerprint[:16]}, schema version {info.schema_version}"
            if info
            else "not finished: it has no dataset.json that can be read"
        )
        head = [
            f"dataset {self.folder}",
            f"  {'state':<12}{state}",
            f"  {'holds':<12}{held.num_rows:,d} objects in {held.num_shards:,d} shards, {held.num_bytes / 1e6:,.1f} "
            f"MB of Parquet",
        ]
        return [*head, *held.lines(), *self._verdict()]

    def _verdict(self) -> list[str]:
        if not self.faults:
            return (
                [f"verified: {len(self.indices):,d} shards are as their sidecars and dataset.json say"]
                if self.verify
                else []
            )
        said = [f"wrong: {len(self.faults):,d} fault{'s' * (len(self.faults) > 1)}"]
        said += [f"  {fault.file:<20} {plain(fault.text)}" for fault in self.faults[:SHOWN_FAULTS]]
        said += [f"  and {len(self.faults) - SHOWN_FAULTS:,d} more"] if len(self.faults) > SHOWN_FAULTS else []
        return [*said, f"remedy: {self._remedy()}"]

    def _remedy(self) -> str:
        """What to do.

        Preprocessing trusts a shard whose sidecar exists and whose size is right, so such a sidecar must be removed
        first.
        """
        removed = sorted({fault.remedy_removes for fault in self.faults} - {""})
        names = " ".join(removed[:SHOWN_FAULTS]) + (
            f" and those of the {len(removed) - SHOWN_FAULTS:,d} other shards" if len(removed) > SHOWN_FAULTS else ""
        )
        again = (
            f"start the command that made the dataset again{self._command()}: it makes these shards anew and "
            f"keeps the others"
        )
        return f"remove {names} there, then {again}" if removed else again

    def _command(self) -> str:
        try:
            return f" ({plain(str(json.loads((self.folder / 'command.json').read_bytes())['command']))})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    paths = [one for one in arguments if not one.startswith("-")]
    unknown = [one for one in arguments if one.startswith("-") and one != "--verify"]
    try:
        if unknown or len(paths) != 1:
            raise ValueError(
                f"{f'unknown flag {unknown[0]}' if unknown else f'give one dataset, not {len(paths)}'}; "
                f"{USAGE.splitlines()[0]}"
            )
        looked = Inspection(paths[0], verify="--verify" in arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        _look(looked)
    except OSError as error:  # a file removed meanwhile, or a store that does not answer
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(looked.lines()))
    return 1 if looked.faults else 0


def _look(looked: Inspection) -> None:
    """Inspect all shards, with a line of progress every TELL_EVERY_S seconds."""
    told = time.monotonic()
    for number in looked.run():
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            print(f"  {number:,d} of {len(looked.indices):,d} shards", file=sys.stderr, flush=True)


if __name__ == "__main__":  # python -m g3pt.data.inspection DATASET [--verify]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names with letters that the terminal lacks
    raise SystemExit(main(sys.argv[1:]))
