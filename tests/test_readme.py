"""What README.md tells people to type: every command's flags exist, and its dry run comes through."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
GIVEN = {
    "prompts.jsonl": '{"text": "a chair"}\n',
    "Cap3D.csv": "0001,a chair\n",
}  # files of the reader's own that a command names
TYPED = re.compile(r"(?:^| |`)python (jobs/\w+\.py)([^`\n]*)", re.MULTILINE)


def commands() -> list[tuple[str, list[str]]]:
    """(job, its arguments) of every `python jobs/x.py ...` in README.md, with or without `ray job submit` before it."""
    if not README.exists():  # test_it_shows_every_job says so; the collection of all tests goes on
        return []
    text = README.read_text()
    return [(job, shlex.split(rest.replace("$PWD/", ""), comments=True)) for job, rest in TYPED.findall(text)]


def entry(job: str, monkeypatch: pytest.MonkeyPatch) -> tuple[type, Callable[[Any], Any]]:
    """The flags and the function that a job hands to `pipelines.cli.main.main`."""
    given: list[tuple[type, Callable[[Any], Any]]] = []
    monkeypatch.setattr("pipelines.cli.main.main", lambda flags, run, **more: given.append((flags, run)))
    runpy.run_path(str(REPOSITORY / job), run_name="__main__")
    (found,) = given
    return found


def test_it_shows_every_job() -> None:
    shown = {job for job, _ in commands()}
    jobs = {f"jobs/{file.name}" for file in (REPOSITORY / "jobs").glob("*.py")}
    assert shown | {"jobs/quickstart.py"} == jobs, "make demo runs the quickstart"


@pytest.mark.parametrize(("job", "args"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_is_understood(
    job: str, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    flags_class, run = entry(job, monkeypatch)
    monkeypatch.chdir(tmp_path)
    given = [name for name in GIVEN if any(Path(arg).name == name for arg in args)]
    for name in given:
        (tmp_path / name).write_text(GIVEN[name])
    args = [Path(arg).name if Path(arg).name in given else arg for arg in args]
    has_dry_run = "dry_run" in flags_class.__dataclass_fields__
    more = ["--dry-run"] if has_dry_run and "--dry-run" not in args else []
    flags = main.parse(flags_class, example="", args=[*args, *more])
    if has_dry_run:
        assert run(flags) is None
        assert capsys.readouterr().out.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(given), "a dry run writes nothing"


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_it_names_exist() -> None:
    text = README.read_text()
    for name in set(re.findall(r"`((?:g3pt|pipelines|jobs|benchmarks)/\w+\.py)`", text)):
        assert (REPOSITORY / name).is_file(), name
