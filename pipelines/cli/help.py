"""`--help` on one screen, and suggestions for misspelled flags, from a flag class's fields and the docstrings below
them.

How: tyro parses, but its own help takes twice the lines. Here each field has its name, kind of value, docstring and
[default]. A default of None is not shown: the docstring must say what happens instead ("default the preset's").
"""

import ast
import dataclasses
import difflib
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any

from pipelines.cli.defaults import CONFIG_FILE, SAVE_CONFIG
from pipelines.cli.flags import Integers, Numbers

NARROWEST, WIDEST = 60, 110  # columns of the page
INDENT = 28  # columns of flag and kind before their explanation
KINDS = {int: "INT", float: "NUMBER", str: "TEXT", Integers: "INT[,...]", Numbers: "NUMBER[,...]"}
PATHS = {
    "captions",
    "data",
    "dir",
    "from_mesh",
    "ids",
    "image",
    "input",
    "model",
    "output",
    "path",
    "prompts",
    "tokenizer",
}  # flags that name a file or folder
LAST_GROUP = "running it"
SAVES = f"write this call's flags to {CONFIG_FILE} as defaults, and stop"
EXIT_CODES = "exit code: 0 done, 1 failed, 2 bad usage or input, 130 interrupted"
MISSING = dataclasses.MISSING
Field = dataclasses.Field[Any]


def help_text(flags_class: type, example: str, columns: int | None = None) -> str:
    """The help page for a terminal of `columns` (default: this one).

    The example is never wrapped, so that it can be copied.
    """
    width = max(NARROWEST, min(WIDEST, columns or shutil.get_terminal_size((100, 24)).columns))
    groups = _grouped(flags_class)
    usage = [f"usage: {program(example)}", *(_flag(field, flags_class) for field in groups["required"])]
    usage += ["[options]"] if groups["options"] or groups[LAST_GROUP] else []
    parts = [_fill(" ".join(usage), width, 7), _fill(" ".join((flags_class.__doc__ or "").split()), width)]
    docs = field_docs(flags_class)
    has_config = program(example).endswith(".py")  # a job: its flags may come from g3pt.toml
    for title, fields in groups.items():
        lines = [_line(_flag(field, flags_class), _told(field, docs), width) for field in fields]
        if title == LAST_GROUP and has_config:
            lines.append(_line(SAVE_CONFIG, SAVES, width))
        if lines:
            parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join([*parts, f"{EXIT_CODES}\nexample: {example}"]) + "\n"


def program(example: str) -> str:
    """The start of the example: `python jobs/x.py` or `python -m package.module`."""
    words = example.split()
    return " ".join(words[: 3 if "-m" in words[:2] else 2])


def complaint(flags_class: type, args: Sequence[str]) -> str | None:
    """What is wrong with the flags' names: the first unknown flag and the closest known one, or the missing ones; None
    if nothing is.
    """
    given = [arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")]
    known = ["--help", SAVE_CONFIG, *(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(flags_class))]
    for flag in given:
        if flag not in known:
            close = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            return f"unknown flag {flag}" + (f"; did you mean {close[0]}?" if close else "")
    needed = [_flag(field, flags_class) for field in _grouped(flags_class)["required"]]
    missing = [flag for flag in needed if flag.startswith("--") and flag.split()[0] not in given]
    return f"missing {', '.join(missing)}" if missing else None


def field_docs(flags_class: type) -> dict[str, str]:
    """Field -> the docstring below it in the source, for inherited fields too."""
    found: dict[str, str] = {}
    for cls in reversed(flags_class.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _grouped(flags_class: type) -> dict[str, list[Field]]:
    """Required fields, the command's own options, and those that commands share (pipelines.cli.flags)."""
    shared = {
        field.name
        for cls in flags_class.__mro__
        if cls.__module__ == "pipelines.cli.flags"
        for field in dataclasses.fields(cls)
    }
    groups: dict[str, list[Field]] = {"required": [], "options": [], LAST_GROUP: []}
    for field in dataclasses.fields(flags_class):
        optional = LAST_GROUP if field.name in shared else "options"
        groups["required" if field.default is MISSING and field.default_factory is MISSING else optional].append(field)
    return groups


def _flag(field: Field, flags_class: type) -> str:
    """`--name KIND`; only the kind for a positional argument, only the name for a switch."""
    hint = typing.get_type_hints(flags_class, include_extras=True)[field.name]
    positional = typing.get_origin(hint) is typing.Annotated
    kind = _kind(field.name, hint.__origin__ if positional else hint)
    return kind.upper() if positional else f"--{field.name.replace('_', '-')} {kind}".strip()


def _kind(name: str, hint: Any) -> str:
    """The kind of value: PATH, INT, {a,b}, INT|{auto} and so on."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(_kind(name, part) for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    return "PATH" if name in PATHS else KINDS.get(hint, "")


def _told(field: Field, docs: dict[str, str]) -> str:
    """The explanation and the default."""
    if field.default is MISSING or field.default is None:
        return docs[field.name]
    return f"{docs[field.name]} [{'off' if field.default is False else field.default}]"


def _line(flag: str, text: str, width: int) -> str:
    head = f"  {flag}  ".ljust(INDENT)
    return textwrap.fill(
        text, width, initial_indent=head, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False
    )


def _fill(text: str, width: int, indent: int = 0) -> str:
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
