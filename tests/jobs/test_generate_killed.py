"""jobs/generate.py killed with SIGKILL: started again, it makes nothing twice and ends with the files
of an uninterrupted job.
"""

import json
import random
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.generate import job as job
from pipelines.generate.config import GenerateConfig
from pipelines.tracking import tracked
from tests.jobs import kills
from tests.pipelines.toy_generator import write_toy_generator

PROMPTS, MADE_ANEW = 40, ("seconds", "tokens_per_s")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_generator(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with two samples each; every fourth is invalid."""
    rows = [{"id": f"p{i}", "text": f"a chair of {i} legs" if i % 4 else "x" * 300, "n": 2} for i in range(PROMPTS)]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def whole(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The manifest of the same job, run in this process without Ray and without a kill."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracked, "tell", lambda *_: None)
        patch.setattr(job, "_picture", lambda output, ok: None)
        job.generate(
            GenerateConfig(model=str(model), output=str(output), prompts=str(prompts), resolution=32, cfg="1"),
            use_ray=False,
        )
    return rows_of(output)


def rows_of(output: Path) -> list[dict]:
    rows = pq.read_table(output / "manifest.parquet").to_pylist()
    return [{name: value for name, value in row.items() if not name.startswith(MADE_ANEW)} for row in rows]


def command(model: Path, prompts: Path, folder: Path) -> list[str]:
    return kills.command(
        "generate", model=model, output=folder / "out", prompts=prompts, resolution=32, cfg=1, num_workers=2
    )


def records(folder: Path) -> dict[Path, int]:
    """Records of successful samples and the times at which they were written."""
    found = {}
    for file in (folder / "out" / "samples").glob("*.json"):
        if not file.name.startswith(".") and json.loads(file.read_bytes())["status"] == "ok":
            found[file] = file.stat().st_mtime_ns
    return found


@pytest.mark.soak
def test_generate_killed_equals_an_uninterrupted_job(
    model: Path, prompts: Path, whole: list[dict], tmp_path: Path
) -> None:
    kills.kill_when(
        command(model, prompts, tmp_path), tmp_path, lambda: len(records(tmp_path)) >= 8, random.uniform(0, 0.5)
    )
    time.sleep(1.0)  # Ray's workers may outlive the driver by a moment
    before = records(tmp_path)
    assert 8 <= len(before) < sum(row["status"] == "ok" for row in whole)
    kills.finish(command(model, prompts, tmp_path), tmp_path)
    assert rows_of(tmp_path / "out") == whole
    after = records(tmp_path)
    assert {file: after[file] for file in before} == before, "made twice"
    told = re.search(r"(\d+) made before", kills.printed(tmp_path)[1])
    assert told and int(told[1]) >= len(before), "a worker may have outlived the count by a sample"
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.soak
@kills.TWENTY
def test_generate_killed_twenty_times(
    model: Path, prompts: Path, whole: list[dict], tmp_path: Path, number: int, ray_of_commands: dict[str, str]
) -> None:  # fmt: skip
    def check(folder: Path) -> None:
        assert rows_of(folder / "out") == whole

    total = sum(row["status"] == "ok" for row in whole)
    kills.kill_often(
        lambda folder: command(model, prompts, folder),
        tmp_path,
        check,
        number,
        lambda folder: len(records(folder)),
        total,
        **ray_of_commands,
    )
