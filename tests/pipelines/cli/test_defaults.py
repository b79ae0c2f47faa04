"""Flags come from the command line, g3pt.toml, or the embedded defaults."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from pipelines.cli.defaults import Call, Defaults, complete, save
from pipelines.cli.flags import DryRun
from pipelines.cli.main import parse

EMBEDDED = Defaults(flags={"output": "out/x", "limit": 3}, says="three things become out/x")


@dataclass(frozen=True, kw_only=True)
class Flags(DryRun):
    """A command."""

    output: str
    """a folder"""
    limit: int = 1
    """how many"""
    rate: float = 0.5
    """how fast"""
    deep: bool = False
    """look deeper"""
    num_workers: int = 1
    """workers"""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A command with a positional argument."""

    dir: tyro.conf.Positional[str]
    """a folder"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(call: Call) -> Flags:
    return parse(Flags, example="python jobs/x.py", args=call.words)


def test_without_flags_the_embedded_defaults_hold() -> None:
    call = complete(Flags, "x", [], EMBEDDED)
    assert parsed(call) == Flags(output="out/x", limit=3)
    assert call.notice is not None and "three things become out/x" in call.notice and call.defaults is EMBEDDED


@pytest.mark.parametrize("how", [["--dry-run"], ["--num-workers", "4"], ["--num_workers=4"]])
def test_flags_that_say_how_the_work_runs_keep_them(how: list[str]) -> None:
    found = parsed(complete(Flags, "x", how, EMBEDDED))
    assert (found.output, found.limit) == ("out/x", 3)
    assert found.dry_run or found.num_workers == 4


@pytest.mark.parametrize("given", [["--limit", "9"], ["--deep"], ["--unknown"]])
def test_a_flag_that_says_what_to_make_ends_them(given: list[str]) -> None:
    assert complete(Flags, "x", given, EMBEDDED) == Call(words=given)


def test_a_table_of_the_file_holds_for_every_call_and_what_is_typed_wins(folder: Path) -> None:
    (folder / "g3pt.toml").write_text('\ufeff[x]\noutput = "mine"\nlimit = 7\nrate = 2\ndeep = true\n[y]\nlimit = 8\n')
    call = complete(Flags, "x", [], EMBEDDED)
    assert parsed(call) == Flags(output="mine", limit=7, rate=2.0, deep=True) and call.defaults is None
    assert call.notice is not None and str(folder / "g3pt.toml") in call.notice
    assert parsed(complete(Flags, "x", ["--limit", "9", "--output=other"], EMBEDDED)) == Flags(
        output="other", limit=9, rate=2.0, deep=True
    )
    assert parsed(complete(Flags, "z", [], EMBEDDED)) == Flags(output="out/x", limit=3), "no table: embedded defaults"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x]\nlimits = 3\n", ["g3pt.toml", "limits"]),
        ("[x]\nlimit = [1, 2]\n", ["g3pt.toml", "limit", "[1, 2]"]),
        ("[x\n", ["g3pt.toml", "not a TOML file"]),
        ("x = 1\n", ["g3pt.toml", "[x]"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(folder: Path, text: str, words: list[str]) -> None:
    (folder / "g3pt.toml").write_text(text)
    with pytest.raises(ValueError) as error:
        complete(Flags, "x", [], EMBEDDED)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_saving_keeps_other_tables_and_comments_and_reads_back(folder: Path) -> None:
    (folder / "g3pt.toml").write_text("# of the group\n[y]\nlimit = 8  # small\n\n[x]\nlimit = 1\n")
    words = ["--limit", "5", "--output", 'a "quoted" \\ name', "--deep"]
    flags = parse(Flags, example="python jobs/x.py", args=words)
    assert save(Flags, "x", words, flags) == folder / "g3pt.toml"
    text = (folder / "g3pt.toml").read_text()
    assert "# of the group" in text and "limit = 8  # small" in text and "rate" not in text
    assert parsed(complete(Flags, "x", [], None)) == flags
    assert [path.name for path in folder.iterdir()] == ["g3pt.toml"]


def test_a_positional_argument_has_a_default_too(folder: Path) -> None:
    embedded = Defaults(flags={"dir": "out"}, says="out is shown")
    assert complete(Placed, "x", [], embedded).words == ["out"]
    assert complete(Placed, "x", ["there"], embedded) == Call(words=["there"])
    (folder / "g3pt.toml").write_text('[x]\ndir = "mine"\n')
    assert complete(Placed, "x", [], embedded).words == ["mine"]
    assert complete(Placed, "x", ["there"], embedded).words == ["there"]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["preprocess", "train_cvq", "train_car", "scaling_sweep", "generate", "evaluate"])
def test_every_job_prints_a_plan_without_flags(job: str, repository: Path, folder: Path) -> None:
    """The defaults have existing fields and valid values; a dry run writes nothing."""
    done = subprocess.run(
        [sys.executable, str(repository / "jobs" / f"{job}.py"), "--dry-run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert done.stderr.startswith(f"{job}: no flags given, so ") and list(folder.iterdir()) == []


def test_a_job_saves_its_flags_and_says_where(repository: Path, folder: Path) -> None:
    words = ["--source", "shapes", "--output", "out/mine", "--limit", "4", "--save-config"]
    job = str(repository / "jobs" / "preprocess.py")
    done = subprocess.run([sys.executable, job, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"result: {folder / 'g3pt.toml'}\n"), done.stderr
    done = subprocess.run([sys.executable, job, "--dry-run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "plan: 4 objects of --source shapes" in done.stdout and "out/mine" in done.stdout


def test_embedded_defaults_are_fields_of_their_commands() -> None:
    from pipelines.demo import defaults as embedded
    from pipelines.evaluate.config import EvaluateFlags
    from pipelines.generate.config import GenerateConfig
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.study.config import SweepFlags
    from pipelines.train.jobs import TrainCARFlags, TrainCVQFlags

    for flags_class, given in (
        (PreprocessConfig, embedded.PREPROCESS),
        (TrainCVQFlags, embedded.TRAIN_CVQ),
        (TrainCARFlags, embedded.TRAIN_CAR),
        (SweepFlags, embedded.SCALING_SWEEP),
        (GenerateConfig, embedded.GENERATE),
        (EvaluateFlags, embedded.EVALUATE),
    ):
        assert set(given.flags) <= {field.name for field in dataclasses.fields(flags_class)}
        flags_class(**given.flags)
