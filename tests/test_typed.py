"""Every function is annotated: parameters and result, in the packages, the benchmarks and the tests."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", ["g3pt", "pipelines", "jobs", "benchmarks", "docs", "tests"])
def test_every_function_says_its_types(folder: str) -> None:
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    assert [place for file in files for place in unannotated(file)] == []


def unannotated(file: Path) -> list[str]:
    """`path:line name` of each function that lacks the type of a parameter or of its result; lambdas have none."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            missing = [arg.arg for arg in named if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
            if missing or node.returns is None:
                found.append(f"{file.relative_to(REPOSITORY)}:{node.lineno} {node.name}")
    return found
