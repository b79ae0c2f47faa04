"""A tokenizer's quality by number of tokens: the picture in MLflow, and the plot and table of the report."""

import re
from pathlib import Path

import pytest

from g3pt.training.exports import write_json
from pipelines.report.page import write_report
from pipelines.report.runs import DIAGNOSTICS
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.tracking.tracked import Outcome
from pipelines.train import follow
from pipelines.train.curves import draw_tokens, quality_by_tokens

SCALES = [1, 4, 16]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    spec = RunSpec(
        stage="cvq",
        preset="nano",
        seed=0,
        config={"model": {"scales": SCALES}, "train": {"steps": 9, "batch_size": 4, "learning_rate": 0.1}},
        paths={},
    )
    folder = tmp_path / spec.name
    folder.mkdir()
    write_json(folder / "config.json", spec.to_dict())
    first = {"step": 10.0, "val_iou_continuous": 0.5}
    rest = [
        {
            "step": float(step),
            "val_iou_continuous": 0.8,
            **{f"{name}_scale_{k}": round(step / 100 + k / 10, 3) for name in DIAGNOSTICS for k in (1, 2, 3)},
        }
        for step in (20, 30)
    ]
    Ledger(folder / "metrics.jsonl").append([first, *rest, {"step": 40.0, "loss": 1.0}])
    return folder


def test_the_newest_validation_counts(run_dir: Path) -> None:
    records = Ledger(run_dir / "metrics.jsonl").read()
    assert quality_by_tokens(records, SCALES, "val") == ([1, 5, 21], [0.4, 0.5, 0.6])
    assert quality_by_tokens(records, SCALES, "test") == ([], []) == quality_by_tokens(records[:1], SCALES, "val")


def test_it_is_drawn_once_it_is_known(run_dir: Path, tmp_path: Path) -> None:
    assert draw_tokens(run_dir, SCALES, tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")
    Ledger(run_dir / "metrics.jsonl").truncate_after(10)
    assert draw_tokens(run_dir, SCALES, tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()


def test_mlflow_gets_the_picture(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.training.exports.export_hash", lambda folder: "0")
    monkeypatch.setattr("pipelines.train.counts.count_parameters", lambda spec: 1)
    import json

    outcome = Outcome()
    follow.describe_finished(RunSpec.from_dict(json.loads((run_dir / "config.json").read_text())), run_dir, outcome)
    assert run_dir / "tokens.png" in outcome.artifacts and (run_dir / "tokens.png").is_file()


def test_the_report_has_the_plot_and_agreement_per_scale(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "Quality by tokens" in page and "validation, decoding the first scales: from 0.4 to 0.6" in page
    table = page.partition("The scales</caption>")[2].partition("</table>")[0]
    rows = [re.findall(r">([\d.]+)<", row) for row in table.split("<tr>")[2:]]
    assert [row[:3] for row in rows] == [["1", "1", "0.400"], ["2", "5", "0.500"], ["3", "21", "0.600"]]
    assert all(len(row) == 2 + len(DIAGNOSTICS) for row in rows) and "same code from two samplings" in table
