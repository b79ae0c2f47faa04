"""tests/README.md names every slow test, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def slow_tests() -> Iterator[str]:
    """Names of the functions that are marked slow: by themselves, by a case in a list of cases, or
    by their module's `pytestmark`.
    """
    for file in sorted(TESTS.rglob("test_*.py")):
        body = ast.parse(file.read_text()).body
        assigned = [node for node in body if isinstance(node, (ast.Assign, ast.AugAssign)) and is_slow(node)]
        lists = {name.id for node in assigned for name in ast.walk(node) if isinstance(name, ast.Name)}
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [
                    name.id for mark in node.decorator_list for name in ast.walk(mark) if isinstance(name, ast.Name)
                ]
                slow = any(is_slow(mark) for mark in node.decorator_list)
                if slow or "pytestmark" in lists or lists & set(marks) - {"pytest"}:
                    yield node.name


def is_slow(node: ast.AST) -> bool:
    """Whether a mark or an assignment speaks of `pytest.mark.slow`."""
    return "mark.slow" in ast.unparse(node)


def test_every_slow_test_says_what_it_proves() -> None:
    listed = set(re.findall(r"^\| `(test_\w+)`", (TESTS / "README.md").read_text(), re.MULTILINE))
    assert listed == set(slow_tests())
