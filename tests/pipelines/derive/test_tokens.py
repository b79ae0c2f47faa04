import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from g3pt.data import derived, reading, records
from g3pt.data.datasets import DatasetInfo
from g3pt.data.variants import varied
from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import export_hash
from pipelines.cli.errors import UsageError
from pipelines.derive import tokens
from tests.pipelines.toy_data import write_toy_dataset, write_toy_tokenizer


@pytest.fixture
def made(tmp_path: Path) -> tuple[DatasetInfo, Path]:
    return write_toy_dataset(tmp_path / "data"), write_toy_tokenizer(tmp_path / "tokenizer")


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.parquet"))}


def test_codes_are_those_of_the_tokenizer_for_every_ok_object(made: tuple[DatasetInfo, Path]) -> None:
    info, tokenizer = made
    kind = tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    assert kind == f"tokens-{export_hash(tokenizer)[:8]}"
    codes = tokens.load_codes(info, kind)
    rows = {row["id"]: row for row in reading.read_rows(info, ["id", "surface"])}
    assert codes.keys() == rows.keys() and len(codes) == 52
    model = CVQ.from_pretrained(tokenizer)
    for object_id in list(rows)[:5]:
        surface = torch.from_numpy(rows[object_id]["surface"][None, :64].astype(np.float32))
        assert codes[object_id].tolist() == model.encode(surface)[0].tolist()
    file = pq.read_schema(derived.derived_path(info, kind, 0))
    assert file.field("codes").type == pa.fixed_shape_tensor(pa.uint16(), (18,))


def test_finished_shards_are_skipped_and_a_missing_one_comes_back_identical(
    made: tuple[DatasetInfo, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, tokenizer = made
    kind = tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    folder = info.path / "derived" / kind
    before = hashes(folder)
    done = []
    original = tokens.encode_shard
    monkeypatch.setattr(tokens, "encode_shard", lambda *given: done.append(given[2]) or original(*given))
    tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    assert done == []
    (folder / "shard-00001.parquet").unlink()
    tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    assert done == [1] and hashes(folder) == before


def test_a_shard_without_ok_objects_gives_an_empty_table(made: tuple[DatasetInfo, Path], tmp_path: Path) -> None:
    table = tokens.codes_table([], np.zeros((0, 18), np.uint16))
    assert table.num_rows == 0 and table.schema.field("codes").type.shape == [18]


def test_an_object_has_the_same_codes_whatever_its_neighbours(made: tuple[DatasetInfo, Path]) -> None:
    info, tokenizer = made
    model = CVQ.from_pretrained(tokenizer)
    rows = list(reading.read_rows(info, ["id", "surface"], shards=[0]))
    together = tokens.encode(model, rows[:9])
    for i in (0, 4, 8):
        assert np.array_equal(tokens.encode(model, rows[i : i + 1])[0], together[i])


def test_bad_input_is_one_clear_line(made: tuple[DatasetInfo, Path], tmp_path: Path) -> None:
    info, tokenizer = made
    with pytest.raises(UsageError, match="no dataset at"):
        tokens.encode_dataset(tmp_path / "nowhere", tokenizer, use_ray=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="not finished"):
        tokens.encode_dataset(info.path, tmp_path / "run", use_ray=False)
    few = write_toy_dataset(
        tmp_path / "few",
        count=4,
        num_shards=1,
        config=records.RecordConfig(num_surface=32, num_sharp=8, num_queries=64),
    )
    with pytest.raises(UsageError, match="num_encode_points = 64.* stores 32"):
        tokens.encode_dataset(few.path, tokenizer, use_ray=False)


def test_where_there_are_gpus_each_actor_has_one(
    made: tuple[DatasetInfo, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    info, tokenizer = made
    asked = {}

    def drive(pieces: Any, num_actors: int, crew: Any, backlog: int) -> Iterator[Any]:
        asked.update(crew.options, size=num_actors)
        pieces.left.clear()
        yield from ()
        return 0

    monkeypatch.setattr("pipelines.cluster.pool.drive", drive)
    monkeypatch.setattr("pipelines.cluster.session.connect", lambda *_: None)
    monkeypatch.setattr("pipelines.derive.tables.join", lambda *_, **__: None)
    monkeypatch.setattr("pipelines.cluster.pool.asked", lambda *_: contextlib.nullcontext("key"))
    monkeypatch.setattr(ray, "put", lambda value: value)  # it would start Ray
    monkeypatch.setattr(ray, "cluster_resources", lambda: {})
    for request, room, size in (({"num_gpus": 1.0}, 2, 2), ({"num_gpus": 1.0}, 8, 3), ({"num_cpus": 1.0}, 32, 1)):
        monkeypatch.setattr("pipelines.cluster.session.actor_resources", lambda *_, found=(request, room): found)
        asked.clear()
        tokens.encode_dataset(info.path, tokenizer, num_workers=1)
        assert asked.items() >= request.items()
        assert asked["size"] == size and asked["num_cpus"] == ("num_gpus" not in request)


@pytest.mark.slow
def test_ray_writes_the_same_files(made: tuple[DatasetInfo, Path], tmp_path: Path, ray_cluster: None) -> None:
    info, tokenizer = made
    kind = tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    alone = hashes(info.path / "derived" / kind)
    other = write_toy_dataset(tmp_path / "again")
    tokens.encode_dataset(other.path, tokenizer, num_workers=2)
    assert hashes(other.path / "derived" / kind) == alone


def test_every_batch_is_filled_up_whoever_encodes(
    made: tuple[DatasetInfo, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation calls `encode` too: codes must not depend on how many objects go along."""
    info, tokenizer = made
    model, sizes = CVQ.from_pretrained(tokenizer), []
    original = CVQ.encode
    monkeypatch.setattr(
        CVQ, "encode", lambda self, surface, *more: sizes.append(len(surface)) or original(self, surface, *more)
    )
    rows = list(reading.read_rows(info, ["id", "surface"]))[:19]
    codes = tokens.encode(model, rows)
    assert codes.shape == (19, 18) and sizes == [16, 16]
    assert np.array_equal(tokens.encode(model, rows[17:]), codes[17:])
    assert tokens.encode(model, []).shape == (0, 18)


def test_a_preset_that_reads_more_points_than_are_stored_is_refused(made: tuple[DatasetInfo, Path]) -> None:
    from g3pt.config import cvq_preset
    from pipelines.train.jobs import cvq_spec

    with pytest.raises(UsageError, match="preset nano reads num_points = 1024, dataset .* stores 128"):
        cvq_spec(str(made[0].path), "nano", *cvq_preset("nano"))


def test_variants_are_encoded_beside_the_objects_and_only_what_is_missing(
    made: tuple[DatasetInfo, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, tokenizer = made
    kind = tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    before, done, original = hashes(info.path / "derived" / kind), [], tokens.encode_shard
    monkeypatch.setattr(tokens, "encode_shard", lambda *given: done.append(given[-1]) or original(*given))
    assert tokens.encode_dataset(info.path, tokenizer, use_ray=False, variants=3) == kind
    assert sorted(done) == [1] * 3 + [2] * 3 and hashes(info.path / "derived" / kind) == before
    codes = [tokens.load_codes(info, tokens.variant_kind(kind, variant)) for variant in range(3)]
    assert codes[0].keys() == codes[1].keys() == codes[2].keys()
    assert sum(not np.array_equal(codes[1][name], codes[2][name]) for name in codes[0]) > len(codes[0]) / 2
    (name, *_), model = codes[0], CVQ.from_pretrained(tokenizer)
    (found,) = reading.read_rows(info, ["id", "up_axis", *tokens.encoded_columns(model.config)], ids={name})
    np.testing.assert_array_equal(tokens.encode(model, [varied(found, 2)])[0], codes[2][name])
