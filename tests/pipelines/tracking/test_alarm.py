"""The collapse alarm as a user sees it: a line when it is raised, a tag in MLflow, status and the report."""

from pathlib import Path

import pytest

from g3pt.training.exports import write_json
from pipelines.cli.errors import NotWell
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.status import job
from pipelines.tracking.client import Mirror
from pipelines.train import follow
from tests.pipelines.train.test_run import toy_spec

HEALTHY = {
    "utilisation_scale_1": 0.9,
    "information_scale_1": 0.9,
    "digit_balance_scale_1": 0.9,
    "entropy_gap_scale_1": 0.5,
    "alarm": 0.0,
}
LASTING = 10
COLLAPSED = HEALTHY | {"utilisation_scale_1": 0.125, "alarm": 1.0}
WORDS = "codes collapse at scale 1: 0.12 of the reachable codes are used (floor 0.5)"


def run_folder(folder: Path, *windows: dict[str, float]) -> tuple[RunSpec, Path]:
    """A run's folder whose ledger has these windows, ten samples apart."""
    spec = toy_spec()
    run_dir = folder / spec.name
    run_dir.mkdir(parents=True)
    write_json(run_dir / "config.json", spec.to_dict())
    Ledger(run_dir / "metrics.jsonl").append(
        [window | {"step": 10.0 * (k + 1), "loss": 1.0} for k, window in enumerate(windows)]
    )
    return spec, run_dir


def test_the_driver_says_it_once_and_not_again_after_a_resumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, run_dir = run_folder(tmp_path, *[COLLAPSED] * LASTING)
    follower = follow.Follower(spec, run_dir)
    ledger = Ledger.of(run_dir)
    ledger.append([COLLAPSED | {"step": 110.0}])
    follower.show()
    assert "alarm" not in capsys.readouterr().err, "an earlier start told it"
    ledger.append([HEALTHY | {"step": 120.0}, *[COLLAPSED | {"step": 130.0 + k} for k in range(LASTING + 2)]])
    follower.show()
    follower.show()
    said = capsys.readouterr().err
    assert said.count("alarm") == 1 and f"{spec.name}: alarm at 139 samples: {WORDS}" in said


@pytest.mark.parametrize(("finished", "lasted", "says"), [(True, 1, 1), (False, 1, 0), (True, LASTING, 1)])
def test_a_run_that_ends_so_says_it_once(
    finished: bool, lasted: int, says: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, run_dir = run_folder(tmp_path, HEALTHY)
    with follow.Follower(spec, run_dir):
        Ledger.of(run_dir).append([COLLAPSED | {"step": 20.0 + k} for k in range(lasted)])
        if finished:
            (run_dir / "_SUCCESS").touch()
    assert capsys.readouterr().err.count(WORDS) == says


class Store:
    """The part of `Tracking` that a Mirror uses."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.metrics: dict[str, float] = {}

    def last_step(self, run_id: str) -> int:
        return -1

    def log_records(self, run_id: str, records: list[dict[str, float]]) -> None:
        for record in records:
            self.metrics |= record

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.tags |= tags

    def clear_tag(self, run_id: str, key: str) -> None:
        self.tags.pop(key, None)


def test_mlflow_has_the_metric_and_a_tag_while_it_sounds(tmp_path: Path) -> None:
    _, run_dir = run_folder(tmp_path, *[COLLAPSED] * LASTING)
    store, ledger = Store(), Ledger(run_dir / "metrics.jsonl")
    mirror = Mirror(store, "1", ledger)
    mirror.copy()
    assert store.tags == {"g3pt.alarm": WORDS}
    assert store.metrics["train/alarm"] == 1.0 and store.metrics["train codes/utilisation_scale_1"] == 0.125
    ledger.append([HEALTHY | {"step": 300.0}])
    mirror.copy()
    assert store.tags == {} and store.metrics["train/alarm"] == 0.0


def test_status_shows_it_in_the_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    run_folder(tmp_path / "bad", *[COLLAPSED] * LASTING)
    run_folder(tmp_path / "good", *[COLLAPSED] * LASTING, HEALTHY)
    with pytest.raises(NotWell):
        job.status(job.StatusFlags(dir=str(tmp_path)))
    bad, good = capsys.readouterr().out.splitlines()
    assert f"ALARM: {WORDS}" in bad and "ALARM" not in good
    with pytest.raises(NotWell):
        job.status(job.StatusFlags(dir=str(tmp_path), json=True))
    assert [item["alarm"] for item in json.loads(capsys.readouterr().out)["items"]] == [WORDS, ""]


def test_skipped_steps_are_named_once_by_the_driver_and_by_status_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.report.page import write_report

    spec, run_dir = run_folder(tmp_path, {"skipped_steps": 2.0, "skipped_step_1": 3.0, "skipped_step_2": 7.0}, {})
    follower = follow.Follower(spec, run_dir)
    Ledger.of(run_dir).append([{"step": 30.0, "loss": 1.0, "skipped_steps": 1.0, "skipped_step_1": 12.0}])
    follower.show()
    follower.show()
    assert capsys.readouterr().err.count("skipped") == 1, "an earlier start reported the first two"
    with pytest.raises(NotWell):
        job.status(job.StatusFlags(dir=str(tmp_path)))
    words = "3 steps skipped, not finite: 3, 7, 12"
    assert words in capsys.readouterr().out
    assert words in write_report(run_dir).read_text()


def test_the_report_warns(tmp_path: Path) -> None:
    from pipelines.report.page import write_report

    _, bad = run_folder(tmp_path / "bad", *[COLLAPSED] * LASTING)
    _, good = run_folder(tmp_path / "good", COLLAPSED, HEALTHY)
    assert f"Alarm: {WORDS}" in write_report(bad).read_text()
    page = write_report(good).read_text()
    assert "Alarm: " not in page and "In 1 of 2 records the codes of a scale were below a limit" in page
