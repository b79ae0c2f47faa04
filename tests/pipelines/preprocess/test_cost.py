"""The cost of a plan: bytes by the schema as they are in memory, hours by objects that are converted for it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from g3pt.data import records
from pipelines.cli.plain_text import with_bytes
from pipelines.preprocess import shards
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.cost import Probe, cost_lines, row_bytes
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import make_plan
from pipelines.preprocess.sources import Listing

CONFIG = PreprocessConfig(
    source="shapes", output="data", limit=50, resolution=32, num_surface=64, num_sharp=32, num_queries=256, dry_run=True
)


@pytest.fixture(autouse=True, scope="module")
def one_child() -> Iterator[None]:
    yield
    shards.close_sandboxes()


@pytest.mark.parametrize("changed", [{}, {"num_sharp": 0, "num_queries": 0}, {"views": 2}])
def test_bytes_per_object_are_those_of_its_tensors(changed: dict[str, int]) -> None:
    record = dataclasses.replace(CONFIG, **changed).record
    row = records.empty_row("a", record)
    assert row_bytes(record) == sum(row[name].nbytes for name in record.tensors)


def test_a_probe_converts_objects_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    config = dataclasses.replace(CONFIG, output=str(tmp_path / "data"), probe=3, num_workers=2)
    preprocess(config)
    said = capsys.readouterr().out
    assert "50 objects in 4 shards to convert (4 new)" in said and "3 objects took " in said
    assert list((tmp_path / "scratch").iterdir()) == [] and not (tmp_path / "data").exists()


def test_hours_and_money_are_of_what_is_left(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, output=str(tmp_path / "data"), price=0.05, num_workers=4)
    plan = make_plan(config, Listing(config))
    lines = cost_lines(config, plan, Probe(seconds=[60.0, 120.0, 180.0], stored=3 * 2**20))
    each = row_bytes(config.record)
    assert lines[0] == f"{with_bytes(each)} of tensors per object, {with_bytes(50 * each)} in all before compression"
    assert lines[1] == (
        "3 objects took 120.00 s each (± 67.90, 180.00 at most) and 1 MiB: 1.67 CPU-hours, 0.08 at 0.05 per hour, "
        "50 MiB; 25 min with 4 such CPUs, downloads aside"
    )
    assert "--probe 32" in cost_lines(config, plan, None)[1]


@pytest.mark.parametrize("changed", [{"probe": -1}, {"probe": 4, "dry_run": False}])
def test_a_probe_is_part_of_a_dry_run(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="--probe"):
        dataclasses.replace(CONFIG, **changed)
