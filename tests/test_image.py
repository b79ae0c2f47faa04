"""deploy/Dockerfile, read line by line: nothing here builds it. Its pip lines were run by hand, see LOG.md."""

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = ("cpu", "cuda", "mlflow")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of each instruction, continued lines joined."""
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]  # type: ignore[misc]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Per stage the one that it begins from, and its own instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            origin, _, stage = rest.partition(" AS ")
            found[stage] = (origin, [])
        else:
            found[stage][1].append((name, rest))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """All instructions of a stage, the first ones first."""
    origin, own = stages()[stage]
    return [*(lineage(origin) if origin in stages() else []), *own]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_user_and_takes_its_packages_from_a_builder(target: str) -> None:
    steps = lineage(target)
    assert [rest for name, rest in steps if name == "USER"] == ["1000"]
    assert ("COPY", f"--from={target}-packages /opt/venv /opt/venv") in steps
    assert not any("g++" in rest for _, rest in steps), "the compiler stays in the builder"


def test_every_install_is_pinned_and_has_no_test_tools() -> None:
    tools = {re.split(r"[\[>=]", one)[0] for one in pyproject()["optional-dependencies"]["dev"]} - {"moto"}
    installs = [part for _, rest in instructions() for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 4
    for line in installs:
        words = shlex.split(line)
        assert words[words.index("--constraint") + 1].endswith("constraints.txt")
        assert not [word for word in words if word.split("==")[0] in tools or "[dev]" in word]


def pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_versions_are_those_of_the_project() -> None:
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    for package, version in re.findall(r"\b(torch|mlflow)==([\d.]+)", text):
        assert f"{package}=={version}" in pinned


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [
        line.removeprefix("!")
        for line in (REPOSITORY / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = [
        word
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
        if not word.startswith("--")
    ]
    assert {"jobs", "g3pt", "pipelines", "weights"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists() and any(fnmatch(source, pattern) for pattern in kept), source
    assert set(kept) == set(sources), "nothing is sent that no line copies"
