"""The record schema: written rows come back through every reader, failed rows wherever they stand."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from g3pt.data import datasets, derived, reading, records
from g3pt.data.selection import Selection

SMALL = records.RecordConfig(num_surface=8, num_sharp=4, num_queries=16, num_views=2, keep_solid=True)


def ok_row(object_id: str, config: records.RecordConfig = SMALL) -> dict:
    rng = np.random.default_rng(records.id_hash(object_id))
    row = records.empty_row(object_id, config) | {"status": "ok", "caption": f"a caption of {object_id}", "scale": 0.5}
    for name, (dtype, shape) in config.tensors.items():
        row[name] = rng.integers(0, 200, shape).astype(dtype)
    if config.num_views:
        row["views"] = [b"png-%d" % view for view in range(config.num_views)]
    if config.keep_solid:
        row["solid"] = records.encode_solid(rng.random((4, 3)), np.array([[0, 1, 2], [0, 2, 3]]))
    return row


def failed_row(object_id: str, config: records.RecordConfig = SMALL) -> dict:
    return records.empty_row(object_id, config) | {"status": "failed", "error": "corrupt: not a GLB"}


ROWS = {
    "none failed": [ok_row("a"), ok_row("b"), ok_row("c")],
    "first": [failed_row("a"), ok_row("b"), ok_row("c")],
    "middle": [ok_row("a"), failed_row("b"), ok_row("c")],
    "last": [ok_row("a"), ok_row("b"), failed_row("c")],
    "only": [failed_row("a")],
}
CASES = pytest.mark.parametrize("rows", list(ROWS.values()), ids=list(ROWS))


def write(
    folder: Path, rows: list[dict], config: records.RecordConfig = SMALL, num_shards: int = 1
) -> datasets.DatasetInfo:
    settings = {"test": 1}
    shards = {}
    for index in range(num_shards):
        mine = [row for row in rows if records.shard_index(row["id"], num_shards) == index]
        shards[index] = datasets.write_shard(
            folder, index, mine, config, config_sha256=records.config_hash(settings), num_shards=num_shards
        )
    datasets.write_dataset(folder, config, settings, num_shards, shards)
    return datasets.open_dataset(folder)


def assert_same(found: dict, row: dict) -> None:
    assert found.keys() <= row.keys()
    for name, value in found.items():
        if isinstance(row[name], np.ndarray):
            assert value.dtype == row[name].dtype and value.shape == row[name].shape, name
            np.testing.assert_array_equal(value, row[name], err_msg=name)
        else:
            assert value == row[name], name


@CASES
def test_rows_come_back_through_our_reader(tmp_path: Path, rows: list[dict]) -> None:
    info = write(tmp_path, rows)
    found = list(reading.read_rows(info, info.columns, status=None))
    assert len(found) == len(rows)
    for mine, row in zip(found, rows, strict=True):
        assert set(mine) == set(row)
        assert_same(mine, row)
    ok = [row["id"] for row in rows if row["status"] == "ok"]
    assert [row["id"] for row in reading.read_rows(tmp_path, ["id"])] == ok
    assert reading.load_arrays(info, None, ["surface"])["surface"].shape == (len(ok), 8, 6)


@CASES
def test_pyarrow_reads_tensors_and_no_column_holds_a_null(tmp_path: Path, rows: list[dict]) -> None:
    info = write(tmp_path, rows)
    table = pq.read_table(info.shard_path(0))
    assert table.schema.equals(records.schema(SMALL))
    for name in table.column_names:
        column = table[name].combine_chunks()
        assert column.null_count == 0, name
        if name in SMALL.tensors:
            assert column.storage.flatten().null_count == 0, name
            np.testing.assert_array_equal(column.to_numpy_ndarray(), np.stack([row[name] for row in rows]))


@CASES
def test_pandas_sees_flat_arrays(tmp_path: Path, rows: list[dict]) -> None:
    frame = pq.read_table(write(tmp_path, rows).shard_path(0)).to_pandas()
    assert frame["status"].tolist() == [row["status"] for row in rows]
    for row, flat in zip(rows, frame["surface"], strict=True):
        np.testing.assert_array_equal(np.asarray(flat).reshape(8, 6), row["surface"])


@CASES
def test_torch_reads_arrays(tmp_path: Path, rows: list[dict]) -> None:
    info = write(tmp_path, rows)
    arrays = reading.load_arrays(info, None, ["surface", "near_occupancy", "offset"], status=None)
    surface = torch.from_numpy(arrays["surface"])
    assert surface.dtype == torch.float16 and tuple(surface.shape) == (len(rows), 8, 6)
    assert torch.equal(surface, torch.stack([torch.from_numpy(row["surface"]) for row in rows]))
    assert torch.from_numpy(arrays["near_occupancy"]).dtype == torch.uint8


@pytest.mark.slow
def test_ray_data_reads_every_case(tmp_path: Path, ray_cluster: None) -> None:
    import ray

    cases = {case: [row | {"id": f"{case} {row['id']}"} for row in rows] for case, rows in ROWS.items()}
    files = [str(write(tmp_path / case.replace(" ", "-"), rows).shard_path(0)) for case, rows in cases.items()]
    data = ray.data.read_parquet(files)  # all in one job: each takes seconds
    read = sorted(data.take_all(), key=lambda row: row["id"])
    for case, rows in cases.items():
        found = [row for row in read if row["id"].startswith(f"{case} ")]
        assert len(found) == len(rows), case
        for mine, row in zip(found, rows, strict=True):
            assert mine["id"] == row["id"] and mine["status"] == row["status"]
            assert [bytes(view) for view in mine["views"]] == row["views"]
            for name in SMALL.tensors:
                assert np.asarray(mine[name]).dtype == row[name].dtype, (case, name)
                np.testing.assert_array_equal(np.asarray(mine[name]), row[name], err_msg=f"{case} {name}")
    numeric = data.select_columns(["surface", "volume_occupancy"])
    count = len(read)
    assert count == sum(map(len, ROWS.values()))
    batch = next(iter(numeric.iter_torch_batches(batch_size=count)))
    assert tuple(batch["surface"].shape) == (count, 8, 6) and batch["surface"].dtype == torch.float16


def test_a_shard_is_byte_identical_whatever_the_order_of_rows(tmp_path: Path) -> None:
    rows = [ok_row(name) for name in "abcd"]
    first = datasets.write_shard(tmp_path / "one", 0, rows, SMALL, seconds={"a": 1.0})
    second = datasets.write_shard(tmp_path / "two", 0, rows[::-1], SMALL, seconds={"a": 2.0})
    assert first["sha256"] == second["sha256"]
    assert hashlib.sha256((tmp_path / "one" / "shard-00000.parquet").read_bytes()).hexdigest() == first["sha256"]
    assert not list((tmp_path / "one").glob(".*"))


def test_sidecar_counts_failures_by_reason(tmp_path: Path) -> None:
    timeout = records.empty_row("t", SMALL) | {"status": "timeout", "error": "timeout: 60 s"}
    sidecar = datasets.write_shard(tmp_path, 7, [ok_row("a"), failed_row("b"), failed_row("c"), timeout], SMALL)
    assert sidecar["counts"] == {"failed": 2, "ok": 1, "timeout": 1}
    assert sidecar["failures"] == {"failed/corrupt": 2, "timeout": 1}
    assert json.loads((tmp_path / "shard-00007.json").read_text()) == sidecar


def test_shard_and_split_are_those_of_the_contract() -> None:
    """Worked out here from the words: h = first 8 bytes, big-endian, of sha256(id); h mod num_shards;
    (h >> 32) mod 100.
    """
    counts = dict.fromkeys(records.SPLITS, 0)
    for k in range(500):
        h = int(hashlib.sha256(f"objects/{k:03d}é".encode()).hexdigest()[:16], 16)
        percent = h // 2**32 % 100
        split = "train" if percent <= 79 else "val" if percent <= 89 else "test"
        counts[split] += 1
        assert records.split_of(f"objects/{k:03d}é") == split
        assert records.shard_index(f"objects/{k:03d}é", 7) == h % 7
    assert counts["train"] > 350 and counts["val"] > 30 and counts["test"] > 30


def test_occupancy_packs_in_little_bit_order() -> None:
    inside = np.array([True] + [False] * 8 + [True] * 7)
    packed = np.packbits(inside, bitorder="little")
    assert packed.tolist() == [1, 254]
    np.testing.assert_array_equal(records.unpack_occupancy(packed), inside)


def test_solid_round_trips_and_trimesh_reads_it() -> None:
    import io

    import trimesh

    vertices, faces = np.random.default_rng(0).random((5, 3)), np.array([[0, 1, 2], [2, 3, 4]])
    data = records.encode_solid(vertices, faces)
    back_vertices, back_faces = records.decode_solid(data)
    np.testing.assert_allclose(back_vertices, vertices, atol=1e-6)
    np.testing.assert_array_equal(back_faces, faces)
    mesh = trimesh.load_mesh(io.BytesIO(data), file_type="ply", process=False)
    assert mesh.faces.tolist() == faces.tolist() and np.allclose(mesh.vertices, vertices, atol=1e-6)


def test_arrays_are_sorted_by_id_over_shards_and_filtered(tmp_path: Path) -> None:
    rows = [ok_row(f"x{number}") | {"license": "CC0-1.0" if number % 2 else "MIT"} for number in range(40)]
    info = write(tmp_path, rows, num_shards=3)
    names = reading.load_arrays(info, None, ["id"])["id"]
    assert names == sorted(row["id"] for row in rows)
    test = reading.load_arrays(info, "test", ["id", "surface", "scale"])
    assert test["id"] == [name for name in names if records.split_of(name) == "test"]
    by_id = {row["id"]: row for row in rows}
    np.testing.assert_array_equal(test["surface"], np.stack([by_id[name]["surface"] for name in test["id"]]))
    assert test["scale"].tolist() == [0.5] * len(test["id"])
    free = reading.load_arrays(info, None, ["license"], selection=Selection(licenses=("MIT",)))["license"]
    assert free == ["MIT"] * 20
    mine = sorted((name for name in names if by_id[name]["license"] == "MIT"), key=records.id_hash)
    few = reading.load_arrays(info, None, ["id"], selection=Selection(licenses=("MIT",)), limit=3)["id"]
    assert few == sorted(mine[:3]) and few != sorted(mine)[:3], "by hash, not the first ids"
    assert sum(info.splits.values()) == 40 and info.splits["test"] == len(test["id"])


def test_a_limit_takes_objects_from_all_sources_alike(tmp_path: Path) -> None:
    names = [f"{source}/{number:03d}" for source in ("kit-a", "kit-b", "museum", "scans") for number in range(40)]
    info = write(tmp_path, [ok_row(name) for name in names], num_shards=3)
    chosen = reading.load_arrays(info, None, ["id"], limit=40)["id"]
    assert chosen == sorted(sorted(names, key=records.id_hash)[:40])
    assert min(Counter(name.split("/")[0] for name in chosen).values()) >= 5, "the first 40 ids are all of kit-a"
    assert reading.load_arrays(info, None, ["id"], limit=1000)["id"] == sorted(names)


def test_a_limit_reads_only_the_row_groups_of_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ok_row(f"x{number:03d}") for number in range(2 * records.ROWS_PER_GROUP * 3)]
    info = write(tmp_path, rows, num_shards=2)
    whole, seen = reading.load_arrays(info, None, ["id", "surface"]), []
    original = reading._batch_rows
    monkeypatch.setattr(
        reading,
        "_batch_rows",
        lambda batch, columns, *given: (
            seen.extend([batch.num_rows] * ("surface" in columns)) or original(batch, columns, *given)
        ),
    )
    one = reading.load_arrays(info, None, ["id", "surface"], limit=1)
    assert one["id"] == [min(whole["id"], key=records.id_hash)]
    assert np.array_equal(one["surface"][0], whole["surface"][whole["id"].index(one["id"][0])])
    assert sum(seen) == records.ROWS_PER_GROUP, "one row group of one shard"


def test_points_of_which_there_are_none_have_no_column(tmp_path: Path) -> None:
    config = records.RecordConfig(num_surface=8, num_sharp=0, num_queries=0)
    write(tmp_path, [failed_row("a", config), ok_row("b", config), ok_row("c", config)], config)
    info = datasets.open_dataset(tmp_path)
    left_out = {"sharp", "near_points", "volume_points", "near_occupancy", "volume_occupancy"}
    assert set(records.schema(SMALL).names) - set(info.columns) == left_out | {"views", "view_cameras", "solid"}
    found = pq.read_table(info.shard_path(0))
    assert found.schema.names == list(info.columns) and not any(column.null_count for column in found.columns)
    rows = list(reading.read_rows(info, info.columns))
    assert [row["id"] for row in rows] == ["b", "c"]
    np.testing.assert_array_equal(rows[0]["surface"], ok_row("b", config)["surface"])
    with pytest.raises(ValueError, match="has no column 'near_points'; it has id, "):
        reading.load_arrays(info, None, ["near_points"])


def test_rows_that_break_the_schema_are_refused() -> None:
    def table(**change: object) -> pa.Table:
        return records.rows_to_table([ok_row("a") | change], SMALL)

    with pytest.raises(ValueError, match="surface is float32"):
        table(surface=np.zeros((8, 6), np.float32))
    with pytest.raises(ValueError, match="near_points is not finite"):
        table(near_points=np.full((16, 3), np.inf, np.float16))
    with pytest.raises(ValueError, match="unknown status 'fine'"):
        table(status="fine")
    with pytest.raises(ValueError, match="1 views, not 2"):
        table(views=[b""])
    with pytest.raises(ValueError, match="columns differ"):
        table(extra=1)
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        records.RecordConfig(num_queries=12)


def test_datasets_that_cannot_be_read_say_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        datasets.open_dataset(tmp_path / "missing")
    with pytest.raises(ValueError, match="dataset.json is missing"):
        datasets.open_dataset(tmp_path)
    write(tmp_path, [ok_row("a")])
    found = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(found | {"schema_version": 99}))
    with pytest.raises(ValueError, match=rf"schema version 99; this program reads version {records.SCHEMA_VERSION}$"):
        datasets.open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(found | {"columns": ["id"]}))
    with pytest.raises(ValueError, match="columns differ"):
        datasets.open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        datasets.open_dataset(tmp_path)


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    info = write(tmp_path, [ok_row("a", records.RecordConfig(num_surface=8, num_sharp=4, num_queries=16))],
                 records.RecordConfig(num_surface=8, num_sharp=4, num_queries=16))  # fmt: skip
    assert "views" not in info.columns and "view_cameras" not in info.columns
    with pytest.raises(ValueError, match="no column 'views'"):
        reading.load_arrays(info, None, ["views"])


def test_the_fingerprint_follows_content_and_config_but_not_shards(tmp_path: Path) -> None:
    rows = [ok_row(name) | {"content_sha256": name * 4} for name in "abcd"]
    one = write(tmp_path / "one", rows)
    three = write(tmp_path / "three", rows, num_shards=3)
    assert one.fingerprint == three.fingerprint
    changed = write(tmp_path / "changed", [rows[0] | {"content_sha256": "other"}, *rows[1:]])
    assert changed.fingerprint != one.fingerprint


def test_derived_tables_join_by_id_and_know_when_they_are_stale(tmp_path: Path) -> None:
    rows = [ok_row(f"x{number}") for number in range(10)]
    info = write(tmp_path, rows, num_shards=2)
    for index in (0, 1):
        ids = [row["id"] for row in reading.read_rows(info, ["id"], shards=[index])]
        codes = pa.array([[index, 7]] * len(ids), pa.list_(pa.uint16(), 2))
        path = derived.write_derived(info, "tokens-12345678", index, pa.table({"id": ids, "codes": codes}))
        assert path == tmp_path.resolve() / "derived" / "tokens-12345678" / f"shard-0000{index}.parquet"
    table = derived.read_derived(info, "tokens-12345678")
    assert table["id"].to_pylist() == sorted(row["id"] for row in rows)
    assert table["codes"].to_pylist()[0] == [records.shard_index("x0", 2), 7]
    changed = write(tmp_path, [row | {"caption": "new"} for row in rows], num_shards=2)
    assert not derived.derived_is_current(changed, "tokens-12345678", 0)
    with pytest.raises(ValueError, match="missing or older"):
        derived.read_derived(changed, "tokens-12345678")
    with pytest.raises(ValueError, match="needs an id column"):
        derived.write_derived(info, "tokens-12345678", 0, pa.table({"codes": [1]}))


def test_an_old_sidecar_never_stands_beside_a_new_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.write_shard(tmp_path, 0, [ok_row("a")], SMALL)
    kept = datasets.write_atomic

    def dies_at_the_sidecar(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        kept(path, data)

    monkeypatch.setattr(datasets, "write_atomic", dies_at_the_sidecar)
    with pytest.raises(KeyboardInterrupt):
        datasets.write_shard(tmp_path, 0, [ok_row("b")], SMALL)
    assert (tmp_path / "shard-00000.parquet").exists() and not (tmp_path / "shard-00000.json").exists()
