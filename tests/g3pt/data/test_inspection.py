"""What a dataset holds and whether it is whole: known counts and quantiles, and each fault named with a remedy."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from g3pt.data import datasets, reading, records
from g3pt.data.inspection import main
from g3pt.data.summary import FURTHER_NAMES, Names, Quantiles

SMALL = records.RecordConfig(num_surface=64, num_sharp=8, num_queries=8, filled=True)
SETTINGS = {"toy": 1}


def row(number: int) -> dict:
    known = {
        "status": "ok",
        "category": f"kind {number % 3}",
        "license": "CC0-1.0" if number % 2 else "",
        "num_faces": 100 * (number + 1),
        "volume": 0.5,
        "thickness": 0.01 * (number + 1),
        "largest_component_share": 0.3 if number % 4 == 0 else 1.0,
        "filled_by": ("winding", "parity", "", "")[number % 4],
        "filled_share": (0.8, 0.4, 0.0, 0.0)[number % 4],
    }
    failed = {"status": "rejected", "error": "zero-extent: flat"}
    return (
        records.empty_row(f"o{number}", SMALL)
        | {"content_sha256": f"{number:x}"}
        | (failed if number % 10 == 9 else known)
    )


def write(folder: Path, count: int = 40, num_shards: int = 4) -> datasets.DatasetInfo:
    rows: dict[int, list[dict]] = {index: [] for index in range(num_shards)}
    for one in map(row, range(count)):
        rows[records.shard_index(one["id"], num_shards)].append(one)
    sha256 = records.config_hash(SETTINGS)
    sidecars = {
        index: datasets.write_shard(
            folder,
            index,
            found,
            SMALL,
            config_sha256=sha256,
            num_shards=num_shards,
            seconds={one["id"]: 0.25 for one in found},
        )
        for index, found in rows.items()
    }
    datasets.write_dataset(folder, SMALL, SETTINGS, num_shards, sidecars)
    return datasets.open_dataset(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "data").path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def looked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_summary_counts_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = looked(capsys, str(folder))
    info = datasets.open_dataset(folder)
    num_bytes = sum(info.shard_path(index).stat().st_size for index in info.shards)
    found = {line[2:13].strip(): line[14:] for line in out.splitlines()}
    assert (code, err) == (0, "") and found[
        "state"
    ] == f"finished, fingerprint {info.fingerprint[:16]}, schema version {records.SCHEMA_VERSION}"
    assert found["holds"] == f"40 objects in 4 shards, {num_bytes / 1e6:.1f} MB of Parquet"
    assert found["status"] == "ok 36, rejected 4" and found["not ok"] == "rejected/zero-extent 4"
    assert found["splits"] == ", ".join(f"{name} {count}" for name, count in info.splits.items()) + " (ok objects)"
    assert found["licences"] == "not stated 20, CC0-1.0 16" and sorted(found["categories"].split(", ")) == [
        f"kind {k} 12" for k in range(3)
    ]
    assert "surface float16[64,6]" in out
    assert found["filled"] == "18 ok objects have enclosed air that was filled, by winding 10, parity 8"
    assert found["shrunk"] == "10 ok objects whose largest component fills less than 0.5 of the box"
    faces = sorted(100 * (n + 1) for n in range(40) if n % 10 != 9)
    least, *_, median, _, _, most = (float(value.replace(",", "")) for value in found["faces"].split())
    assert (least, most) == (faces[0], faces[-1]) and abs(median / faces[17] - 1) < 0.006
    assert found["seconds"].split() == ["0.25"] * 7 and found["volume"].split() == ["0.5"] * 7


def test_no_tensor_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.data import inspection

    read: list[str] = []
    real = inspection.pq.ParquetFile.read
    monkeypatch.setattr(
        inspection.pq.ParquetFile,
        "read",
        lambda self, columns, use_threads: (read.extend(columns), real(self, columns=columns, use_threads=use_threads))[
            1
        ],
    )
    assert main([str(folder), "--verify"]) == 0
    assert read and not set(read) & set(SMALL.tensors)


def test_a_whole_dataset_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = looked(capsys, str(folder), "--verify")
    assert code == 0 and out.splitlines()[-1] == "verified: 4 shards are as their sidecars and dataset.json say"


def test_a_terminal_without_the_letters_of_a_name_gets_escapes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "caf\u00e9")
    command = [sys.executable, "-m", "g3pt.data.inspection", str(tmp_path / "caf\u00e9")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and b"/caf\\xe9\n" in done.stdout, done.stderr


def test_a_dataset_of_walls_has_no_columns_about_filling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walls = dataclasses.replace(SMALL, filled=False)
    one = {name: value for name, value in row(0).items() if name not in records.FILL_COLUMNS}
    sidecar = datasets.write_shard(tmp_path, 0, [one], walls, config_sha256=records.config_hash({}))
    written = datasets.write_dataset(tmp_path, walls, {}, 1, {0: sidecar})
    assert "filled" not in written["record"] and not records.FILL_COLUMNS.keys() & set(written["columns"])
    code, out, _ = looked(capsys, str(tmp_path))
    assert code == 0 and "filled" not in out
    found = reading.load_arrays(datasets.open_dataset(tmp_path), None, ["id", "volume"])
    assert found["volume"].tolist() == [0.5]


def test_a_dataset_from_before_a_column_is_read_without_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = datasets.open_dataset(folder)
    shards = {}
    for index in info.shards:
        data = datasets.parquet_bytes(pq.read_table(info.shard_path(index)).drop_columns(["largest_component_share"]))
        info.shard_path(index).write_bytes(data)
        shards[str(index)] = hashlib.sha256(data).hexdigest()
        sidecar = folder / f"{records.shard_name(index)}.json"
        change(sidecar, sha256=shards[str(index)], bytes=len(data))
    columns = [name for name in info.columns if name != "largest_component_share"]
    change(folder / "dataset.json", shards=shards, columns=columns)
    code, out, _ = looked(capsys, str(folder), "--verify")
    assert code == 0 and "shrunk" not in out and "largest part" not in out
    older = datasets.open_dataset(folder)
    assert len(reading.load_arrays(older, None, ["id", "volume"])["volume"]) == 36
    with pytest.raises(ValueError, match="no column 'largest_component_share'"):
        reading.load_arrays(older, None, ["largest_component_share"])
    change(folder / "dataset.json", columns=[name for name in columns if name != "volume"])
    with pytest.raises(ValueError, match="columns differ"):
        datasets.open_dataset(folder)


def flip(file: Path) -> None:
    """Change one byte within a tensor's values, which only --verify reads."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns = [group.column(k) for k in range(group.num_columns)]
    tensor = next(column for column in columns if column.path_in_schema.startswith("surface."))
    data = bytearray(file.read_bytes())
    data[tensor.data_page_offset + tensor.total_compressed_size // 2] ^= 1
    file.write_bytes(data)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


DAMAGE = {  # name -> (what is done, the fault's line, the file that must go first, seen without --verify)
    "corrupted": (
        lambda d: flip(d / "shard-00001.parquet"),
        "shard-00001.parquet  has sha256 ",
        "shard-00001.json",
        False,
    ),
    "missing": (
        lambda d: (d / "shard-00002.parquet").unlink(),
        "shard-00002.parquet  missing although dataset.json lists it",
        "",
        True,
    ),
    "cut short": (
        lambda d: (d / "shard-00000.parquet").write_bytes(b"PAR1"),
        "shard-00000.parquet  has 4 bytes, its sidecar says ",
        "",
        True,
    ),
    "no sidecar": (lambda d: (d / "shard-00003.json").unlink(), "shard-00003.json     missing", "", True),
    "half a sidecar": (
        lambda d: (d / "shard-00003.json").write_text('{"rows": 1'),
        "shard-00003.json     is cut off or no sidecar",
        "",
        True,
    ),
    "another state": (
        lambda d: change(d / "shard-00003.json", sha256="ab"),
        "shard-00003.json     is of another state of its shard than dataset.json",
        "shard-00003.json",
        True,
    ),
    "other settings": (
        lambda d: change(d / "shard-00003.json", config_sha256="ab"),
        "shard-00003.json     is of other settings than dataset.json",
        "",
        True,
    ),
    "other rows": (
        lambda d: change(d / "shard-00003.json", rows=99),
        "shard-00003.parquet  has ",
        "shard-00003.json",
        True,
    ),
    "other objects": (
        lambda d: change(d / "shard-00003.json", content={}),
        "shard-00003.parquet  contains other objects than its sidecar says",
        "shard-00003.json",
        False,
    ),
    "extra": (
        lambda d: shutil.copy(d / "shard-00003.json", d / "shard-00007.json"),
        "shard-00007.json     is not in dataset.json",
        "",
        True,
    ),
    "other counts": (
        lambda d: change(d / "dataset.json", counts={"ok": 99}),
        "dataset.json         says counts {'ok': 99}, its shards contain {'ok': 36, 'rejected': 4}",
        "",
        True,
    ),
    "other fingerprint": (
        lambda d: change(d / "dataset.json", fingerprint="ab"),
        "dataset.json         its fingerprint is not that of its shards",
        "",
        False,
    ),
    "no JSON": (
        lambda d: (d / "dataset.json").write_text("{"),
        "dataset.json         is not readable JSON",
        "dataset.json",
        True,
    ),
    "unfinished": (
        lambda d: (d / "dataset.json").unlink(),
        "dataset.json         missing: preprocessing did not finish",
        "",
        False,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_fault_is_named_with_its_remedy(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, line, removed, free = DAMAGE[name]
    (folder / "command.json").write_text('{"command": "python jobs/preprocess.py --x \\u001b[1m"}')
    damage(folder)
    code, out, _ = looked(capsys, str(folder), "--verify")
    faults, remedy = out.partition("\nwrong: 1 fault\n")[2].splitlines()
    assert code == 1 and faults.startswith(f"  {line}")
    assert (
        remedy.startswith(f"remedy: remove {removed} there, then start" if removed else "remedy: start the command")
        and "(python jobs/preprocess.py --x ?[1m)" in remedy
    )
    code, out, _ = looked(capsys, str(folder))
    assert (code == 1) is free and (line in out) is free and out.startswith(f"dataset {folder}\n")


def test_of_an_unfinished_dataset_the_finished_shards_are_seen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dataset.json").unlink()
    (folder / "shard-00000.json").unlink()
    code, out, _ = looked(capsys, str(folder))
    assert code == 0 and "not finished: it has no dataset.json that can be read" in out and " in 3 shards" in out


@pytest.mark.parametrize(("count", "num_shards"), [(0, 1), (0, 0), (1, 1)])
def test_a_dataset_of_no_rows_is_whole(
    count: int, num_shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, count, num_shards)
    code, out, _ = looked(capsys, str(tmp_path), "--verify")
    assert (
        code == 0 and f"{count} objects in {num_shards} shards" in out and out.splitlines()[-1].startswith("verified: ")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none"], "no dataset at {}/none: the folder does not exist"),
        (["{}"], "no dataset at {}: dataset.json is missing (preprocessing did not finish there)"),
        (["ftp://x"], "ftp://x: ftp:// is not known; give a local path, s3://bucket/path or gs://bucket/path"),
        ([], "give one dataset, not 0; usage: python -m g3pt.data.inspection DATASET [--verify]"),
        (["x", "--verfy"], "unknown flag --verfy; usage: python -m g3pt.data.inspection DATASET [--verify]"),
    ],
)
def test_where_there_is_no_dataset_one_line_says_so(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = looked(capsys, *(one.format(tmp_path) for one in arguments))
    assert (code, out, err) == (2, "", f"error: {message.format(tmp_path)}\n")


def test_another_schema_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "dataset.json", schema_version=99)
    assert looked(capsys, str(folder), "--verify") == (
        2,
        "",
        f"error: dataset {folder} has schema version 99; this program reads version {records.SCHEMA_VERSION}\n",
    )


def test_the_module_is_a_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "g3pt.data.inspection", str(folder), "--verify"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"dataset {folder}\n")


def test_quantiles_are_within_half_a_percent_of_the_sorted_values() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=5000) * 3)
    found = Quantiles()
    for part in np.split(values, 10):
        found.add(part.tolist())
    found.add([float("nan"), float("inf")])
    for share in (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0):
        exact = np.sort(values)[max(1, int(np.ceil(share * 5000))) - 1]
        assert abs(found.at(share) / exact - 1) < 0.0051
    assert (found.count, found.at(0.0), found.at(1.0)) == (5000, values.min(), values.max())
    found.add([0.0] * 5000)
    assert found.at(0.5) == 0.0 < found.at(0.51) and np.isnan(Quantiles().at(0.5))


def test_names_beyond_a_bound_share_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.data.summary.MOST_NAMES", 2)
    names = Names()
    for counts in ({"a": 2, "": 1}, {"b": 3, "c": 4, "a": 1}):
        names.add(counts)
    assert (
        names == {"a": 3, "not stated": 1, FURTHER_NAMES: 7} and names.line() == "(further names) 7, a 3, not stated 1"
    )
