"""Planning at scale: CPU seconds and memory for 10^5 to 10^7 objects, and of a restart on 100,000 finished shards.

    python benchmarks/planning.py --output planning.json
    python benchmarks/planning.py --objects 10000000 --shards 0 --folder /scratch
        (2 GB of manifest there and 6 GB of temporary files; removed at the end)
    python benchmarks/planning.py --objects "" --shards 0 --bucket-shards 1000,10000
        (the same start on a bucket of moto's S3 server, a process of its own)

Each case has its own process; peak memory is what that process used beyond its imports, and seconds are CPU time. The
manifest is written and read as a stream. Its meshes do not exist, because a plan does not open them. Finished shards
are fabricated: sidecars as `write_shard` writes them, each with a few bytes instead of a Parquet file. A restart
compares every object with them as usual. For a bucket the table has the number of requests by kind, from the server's
log; that number is the same on any store, the seconds are not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import machine  # noqa: E402
from g3pt.data import records  # noqa: E402
from g3pt.data.storage import is_remote, location  # noqa: E402

CATEGORIES = ("chair", "table", "lamp", "car", "plant", "tool", "house", "animal")
LICENCES = ("CC0-1.0", "CC-BY-4.0", "MIT")
PARQUET = b"PAR1"  # instead of a shard, of which a plan reads only the size
SHOWN = {
    "plan": "plan",
    "fingerprint": "fingerprint",
    "done": "start: all done",
    "one stale": "start: one shard stale",
    "dataset.json": "dataset.json",
    "bucket": "start on a bucket: all done",
}


# ------------------------------------------------------------------------------------------------------- what is there


def write_manifest(folder: Path, num_objects: int) -> int:
    """Write manifest.csv of made-up objects as a stream and return its size in bytes."""
    with open(folder / "manifest.csv", "w", encoding="utf-8") as file:
        file.write("id,path,license,author,source_url,name,category\n")
        for number in range(num_objects):
            name = id_of(number)
            author = f"author{number % 9973}"
            file.write(
                f"{name},{name[:2]}/{name}.glb,{LICENCES[number % 3]},{author},https://example.org/{name},Object "
                f"{number},{CATEGORIES[number % 8]}\n"
            )
    return (folder / "manifest.csv").stat().st_size


def id_of(number: int) -> str:
    """An id that looks like those of Objaverse."""
    return hashlib.md5(number.to_bytes(8, "big")).hexdigest()


def config_of(folder: Path, num_shards: int | None = None, output: str | None = None) -> Any:
    """The configuration of the planned command."""
    from pipelines.preprocess.config import PreprocessConfig

    return PreprocessConfig(
        source="dir", input=str(folder), output=output or str(folder / "data"), num_shards=num_shards
    )


def fabricate(config: Any) -> None:
    """Write the sidecar of every shard as if it had been converted, and a file of the size that it names."""
    from pipelines.preprocess.plan import make_plan
    from pipelines.preprocess.sources import Listing, inputs_hash
    from pipelines.preprocess.sources.fetch import fetched

    folder, sha256 = location(config.output), records.config_hash(config.settings)
    folder.mkdir()
    writers = ThreadPoolExecutor(8 if is_remote(config.output) else 1)
    for task in make_plan(config, Listing(config)).tasks:
        found = list(fetched(task.objects, config))
        ids = [one.item.id for one in found]
        sidecar = {
            "schema_version": records.SCHEMA_VERSION, "config_sha256": sha256,
            "inputs_sha256": inputs_hash([one.item for one in found]),
            "num_shards": task.num_shards, "rows": len(ids), "counts": {"ok": len(ids)},
            "splits": dict(Counter(map(records.split_of, ids))),
            "failures": {}, "content": dict.fromkeys(ids, "0" * 64), "seconds": dict.fromkeys(ids, 0.4),
            "view_seconds": 0.0,
            "files": {name: [[f"{name[:2]}/{name}.glb", -1, 0]] for name in ids}, "bytes": len(PARQUET),
            "sha256": "0" * 64,
        }  # fmt: skip
        sidecar["inputs_sha256"] = inputs_hash(known(config, found, sidecar))
        writers.submit(
            (folder / f"{records.shard_name(task.index)}.json").write_bytes, json.dumps(sidecar, indent=1).encode()
        )
        writers.submit((folder / f"{records.shard_name(task.index)}.parquet").write_bytes, PARQUET)
    writers.shutdown()


def known(config: Any, found: list[Any], sidecar: dict[str, Any]) -> list[Any]:
    """The objects with the content hashes of the sidecars, as a restart reads them."""
    from pipelines.preprocess.sources.fetch import known_content

    return known_content(config, [one.item for one in found], sidecar)


# -------------------------------------------------------------------------------------------------------- in the child


def sum_up(num_objects: int) -> dict[str, Any]:
    """The fingerprint of a dataset of this many objects, computed from generated sidecars as dataset.json needs it."""
    from g3pt.data.tally import Tally
    from pipelines.preprocess.plan import default_num_shards

    num_shards = default_num_shards(num_objects)
    with machine.cost() as summing:
        tally = Tally()
        for index in range(num_shards):
            content = {id_of(number): "0" * 64 for number in range(index, num_objects, num_shards)}
            tally.add(
                index,
                {
                    "sha256": "0" * 64,
                    "rows": len(content),
                    "counts": {"ok": len(content)},
                    "failures": {},
                    "splits": {},
                    "content": content,
                },
            )
        tally.fingerprint("0" * 64)
    return {**asdict(summing), "num_shards": num_shards, "stale": 0}


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case and return its cost and result."""
    if case["what"] == "fingerprint":
        return sum_up(case["objects"])
    from g3pt.data import datasets
    from pipelines.preprocess.plan import make_plan
    from pipelines.preprocess.sources import Listing

    config = config_of(Path(case["folder"]), case["num_shards"], case.get("output"))
    started = time.monotonic()
    with machine.cost() as planning:
        plan = make_plan(config, Listing(config))
    found = {
        **asdict(planning),
        "wall_s": time.monotonic() - started,
        "num_shards": plan.num_shards,
        "stale": len(plan.tasks),
        "current": len(plan.current.shards),
    }
    if case["what"] == "done":
        with machine.cost() as writing:
            datasets.write_dataset(
                location(config.output), config.record, config.settings, plan.num_shards, plan.current
            )
        found["dataset_json"] = asdict(writing)
    return found


# ------------------------------------------------------------------------------------------------------- in the parent


def child(**case: Any) -> dict[str, Any]:
    """Run `run_case` in its own process."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case, default=str)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(f"{case} failed: {done.stderr.strip()[-500:]}")
    return {name: value for name, value in case.items() if name != "folder"} | json.loads(done.stdout.splitlines()[-1])


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder that is removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="planning-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Plan new datasets, then restart on a finished one."""
    rows = []
    for num_objects in flags.objects:
        with scratch(flags.folder) as folder:
            num_bytes = write_manifest(folder, num_objects)
            rows.append(
                child(what="plan", folder=folder, objects=num_objects, num_shards=None) | {"manifest_bytes": num_bytes}
            )
            print(line(rows[-1]), flush=True)
        rows.append(child(what="fingerprint", objects=num_objects))
        print(line(rows[-1]), flush=True)
    if flags.shards:
        with scratch(flags.folder) as folder:
            num_objects = flags.shards * flags.per_shard
            write_manifest(folder, num_objects)
            fabricate(config_of(folder, flags.shards))
            rows.append(child(what="done", folder=folder, objects=num_objects, num_shards=flags.shards))
            rows.append({**rows[-1], **rows[-1]["dataset_json"], "what": "dataset.json"})
            print(line(rows[-2]), line(rows[-1]), sep="\n", flush=True)
            sidecar = next((folder / "data").glob("shard-*.json"))
            sidecar.write_text(
                sidecar.read_text(encoding="utf-8").replace('"inputs_sha256": "', '"inputs_sha256": "x'),
                encoding="utf-8",
            )
            rows.append(child(what="one stale", folder=folder, objects=num_objects, num_shards=flags.shards))
            print(line(rows[-1]), flush=True)
    return rows


def on_buckets(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Restart on finished datasets in a bucket and count the requests."""
    from tests.s3_server import s3_server

    rows = []
    for num_shards in flags.bucket_shards:
        with scratch(flags.folder) as folder, s3_server(folder) as server:
            os.environ.update(server.environment())
            output, num_objects = f"{server.new_bucket(f'planning-{num_shards}')}/data", num_shards * flags.per_shard
            write_manifest(folder, num_objects)
            fabricate(config_of(folder, num_shards, output))
            before = len(server.requests())
            row = child(what="bucket", folder=folder, objects=num_objects, num_shards=num_shards, output=output)
            asked = server.requests()[before:]
            kinds = Counter("LIST" if "list-type" in request else request.split()[0] for request in set(asked))
            rows.append(row | {"requests": dict(kinds), "tried_again": len(asked) - kinds.total()})
            print(
                f"{line(rows[-1])} {row['wall_s']:.0f} s, requests {dict(kinds)}, tried again "
                f"{rows[-1]['tried_again']}",
                flush=True,
            )
    return rows


HEAD = "| case | objects | shards | stale | CPU s | peak MB |\n|---|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"| {SHOWN[row['what']]} | {row['objects']:,d} | {row['num_shards']:,d} | {row['stale']:,d} | "
        f"{row['seconds']:.1f} | {row['peak_mb']:.0f} |"
    )


def main() -> None:
    """Measure all cases; print a Markdown table row by row and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--objects",
        type=lambda text: [int(part) for part in text.split(",") if part],
        default=[100_000, 1_000_000],
        help="sizes of new datasets to plan",
    )
    parser.add_argument("--shards", type=int, default=100_000, help="finished shards to start on; 0 for none")
    parser.add_argument(
        "--bucket-shards",
        type=lambda text: [int(part) for part in text.split(",") if part],
        default=[],
        help="finished shards in a bucket to start on; default none",
    )
    parser.add_argument("--per-shard", type=int, default=10, help="objects of a finished shard (mean)")
    parser.add_argument("--folder", type=Path, help="where to work; default the system's folder for temporary files")
    parser.add_argument("--output", type=Path, default=Path("planning.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        print(json.dumps(run_case(json.loads(flags.case))))
        return
    print(HEAD, flush=True)
    report = {"machine": machine.about("pyarrow", "numpy"), "rows": measure(flags) + on_buckets(flags)}
    report["machine"]["load_average_after"] = os.getloadavg()
    flags.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
