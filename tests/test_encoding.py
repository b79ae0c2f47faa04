"""Text files and texts of other programs are UTF-8 whatever the locale: every call
that opens one names its encoding.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("g3pt", "pipelines", "jobs", "benchmarks", "docs")
TEXT_MODE = re.compile(r"[rwax]t?\+?t?")


def without_encoding(code: str) -> list[int]:
    """Lines of the calls that would use the locale's encoding."""
    return [node.lineno for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and _is_wrong(node)]


def _is_wrong(call: ast.Call) -> bool:
    given = {word.arg: word.value for word in call.keywords}
    if "encoding" in given or None in given:  # or **options
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    is_method = isinstance(call.func, ast.Attribute)
    if is_method and name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if any(getattr(given.get(word), "value", False) is True for word in ("text", "universal_newlines")):
        return True
    if name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"):
        modes = [arg.value for arg in [*call.args, given.get("mode")] if isinstance(arg, ast.Constant)]
        said = [mode for mode in modes if isinstance(mode, str) and re.fullmatch(r"[rwaxbt+]{1,3}", mode)]
        if said:
            return TEXT_MODE.fullmatch(said[0]) is not None
        has_mode = "mode" in given or not is_method and len(call.args) > 1  # one that the code computes
        return name in ("open", "fdopen") and not has_mode and not (is_method and (call.args or given))
    return False


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_is_opened_with_its_encoding(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("code", "is_wrong"),
    [
        ("open(a)", True),
        ("open(a, 'w')", True),
        ("open(a, 'rb')", False),
        ("open(a, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('ab')", False),
        ("Image.open(path)", False),
        ("os.fdopen(os.dup(2), 'w')", True),
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(words)", True),
        ("path.write_text(words, encoding='utf-8')", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("subprocess.run(line, text=True)", True),
        ("subprocess.run(line, text=True, encoding='utf-8')", False),
    ],
)
def test_what_counts_as_opened_without(code: str, is_wrong: bool) -> None:
    assert bool(without_encoding(code)) is is_wrong
