"""--help of every job fits a screen, has each flag with its default and an example that parses;
a mistyped flag gets a suggestion.
"""

import dataclasses
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import help, main
from tests.pipelines.cli.test_main import ToyFlags

REPOSITORY = Path(__file__).resolve().parents[3]
JOBS = sorted(file.name for file in (REPOSITORY / "jobs").glob("*.py"))
SAME_WORDS = (
    "data",
    "tokenizer",
    "device",
    "ray_address",
    "dry_run",
    "cfg",
    "top_k",
    "top_p",
    "temperature",
    "batch_size",
    "format",
)


def entry(job: str, monkeypatch: pytest.MonkeyPatch) -> tuple[type, str]:
    """The flags and the example that a job passes to `pipelines.cli.main.main`."""
    given: list[tuple[type, str]] = []
    monkeypatch.setattr("pipelines.cli.main.main", lambda flags, run, example, **more: given.append((flags, example)))
    runpy.run_path(str(REPOSITORY / "jobs" / job), run_name="__main__")
    (found,) = given
    return found


def explained(text: str) -> dict[str, str]:
    """Flag -> its line or lines, joined."""
    entries = re.split(r"\n  (?=\S)", re.sub(r"\n {20,}", " ", text))[1:]
    return {entry.split()[0]: entry.split("\n\n")[0] for entry in entries}


@pytest.mark.parametrize("job", JOBS)
def test_it_fits_one_screen_and_ends_with_an_example_that_parses(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags_class, example = entry(job, monkeypatch)
    text = help.help_text(flags_class, example, columns=100)
    lines = text.splitlines()
    # choose, convert and render; plan and train; trainings on one GPU and on many nodes
    most = {"preprocess.py": 67, "scaling_sweep.py": 60, "train_cvq.py": 50, "train_car.py": 50}.get(job, 40)
    assert len(lines) <= most and max(map(len, lines[:-1])) <= 100
    assert max(map(len, help.help_text(flags_class, example, columns=80).splitlines()[:-1])) <= 80
    assert lines[-1] == f"example: {example}"
    program, script, *args = shlex.split(example)
    assert (program, script) == ("python", f"jobs/{job}")
    assert isinstance(main.parse(flags_class, example=example, args=args), flags_class)


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_is_explained_with_its_default(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags_class, example = entry(job, monkeypatch)
    found = explained(help.help_text(flags_class, example, columns=100))
    for field in dataclasses.fields(flags_class):
        line = found.get(f"--{field.name.replace('_', '-')}") or found[help._flag(field, flags_class)]
        if field.default is None:
            assert "default " in line, line
        elif field.default is not dataclasses.MISSING:
            assert line.endswith(f"[{'off' if field.default is False else field.default}]"), line
        assert len(line.split()) > 3 and "``" not in line, line


def test_a_flag_that_takes_a_number_a_scale_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {job: help.help_text(*entry(job, monkeypatch), columns=100) for job in ("generate.py", "evaluate.py")}
    for flag in ("--cfg", "--cfg-text", "--cfg-image", "--top-p", "--temperature"):
        assert f"  {flag} NUMBER[,...]  " in text["generate.py"]
    assert (
        "  --top-k INT[,...]  " in text["generate.py"]
        and "  --top-k INT  " in text["evaluate.py"]
        and "  --guidance-grid NUMBER[,...]  " in text["evaluate.py"]
    )


def test_the_same_flag_has_the_same_words_in_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, set[str]] = {name: set() for name in SAME_WORDS}
    for job in JOBS:
        for name, text in help.field_docs(entry(job, monkeypatch)[0]).items():
            if name in words:
                words[name].add(text.partition("; default")[0].removeprefix("generator: "))
    assert {name: texts for name, texts in words.items() if len(texts) != 1} == {}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--cuont", "1"], "unknown flag --cuont; did you mean --count?"),
        (["--dry_rum"], "unknown flag --dry-rum; did you mean --dry-run?"),
        (["--zzzz"], "unknown flag --zzzz (see"),
    ],
)
def test_an_unknown_flag_is_one_line_with_the_nearest(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.parse(ToyFlags, example="", args=args)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and says in err


def test_missing_flags_are_named_with_their_kind() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needs:
        data: str
        steps: int
        rate: float | None = None

    assert help.complaint(Needs, ["--steps", "3"]) == "missing --data PATH"
    assert help.complaint(Needs, ["--data", "x", "--steps", "3"]) is None


def test_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.parse(ToyFlags, example="python jobs/toy.py", args=["--help"])
    out: Any = capsys.readouterr().out
    assert stop.value.code == 0 and "--count INT" in out and "how many [1]" in out and "\x1b" not in out
