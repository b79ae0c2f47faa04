"""A study's plan as a file: `--plan study.toml`, and the same tables in study.json of a study that was run.

How: each key is a flag with underscores, in one of the TABLES; lists replace commas. `[conditions]` and `[set]` contain
fields of the presets, as `--set` does. The file becomes command-line words, so a flag that is typed overrides its key.
Paths are those that would be typed: relative to the working directory.
Ours: all of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.cli.main import absolute
from pipelines.study.config import SweepFlags

ACTIONS = {"plan", "dry_run", "replace", "tune_lr", "probe", "pause", "finish"}  # what to do now; no part of a plan
UNREAD = ("data", "tokenizer")  # by --pause and --finish
TABLES: dict[str, tuple[str, ...]] = {
    "": (
        "data", "tokenizer", "output", "sizes", "samples", "held_out", "seeds", "steps", "batch_size",
        "warmup_samples", "lr_rule", "ceiling", "max_interval",
    ),
    "conditions": ("features",),
    "placement": (
        "num_workers", "micro_batch", "gpu_memory", "max_concurrent", "device", "max_failures", "ray_address",
        "cache", "loader_workers",
    ),
    "cost": ("on", "utilisation", "flops_per_s", "price"),
}  # fmt: skip
CONDITION_FIELDS = (
    "text_encoder", "text_revision", "image_encoder", "image_revision", "image_size", "drop_both", "drop_text",
    "drop_image", "drop_phrases",
)  # fmt: skip
LISTS = {"sizes": "text", "samples": 'a count, such as 8000 or "8k"', "held_out": "text", "seeds": "a whole number"}
PATHS = ("data", "tokenizer", "output", "lr_rule")
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def with_plan_file(words: Sequence[str]) -> list[str]:
    """The words of a command line with those of the file that --plan names, less what is typed; --plan itself is left
    out. --pause and --finish need --output alone. ValueError, with file, key and remedy, for a file that is no plan.
    """
    rest, file = _without_flag(words, "plan")
    typed = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    if file is None and typed & {"pause", "finish"}:
        return [*(word for name in UNREAD if name not in typed for word in (f"--{name}", "-")), *words]
    if file is None:
        return list(words)
    found: list[str] = []
    for name, value in read_plan(file).items():
        if name not in typed:
            found += [f"--{name.replace('_', '-')}", value]
    return [*found, *rest]


def read_plan(file: str) -> dict[str, str]:
    """Flag -> its value as typed, of a study.toml or the study.json of a study."""
    return {name: value for name, value in _flat(_parsed(file), file).items() if value}


def plan_of(flags: SweepFlags) -> dict[str, Any]:
    """The tables of the plan that the flags are, with absolute paths; what is None is left out."""
    values = {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags)}
    tables: dict[str, Any] = {}
    for table, names in TABLES.items():
        found = {name: _stored(name, values[name]) for name in names if values[name] is not None}
        tables |= found if not table else {table: found}
    changed = (part.partition("=") for part in filter(None, (flags.set or "").split(",")))
    return tables | {"set": {name.strip(): value.strip() for name, _, value in changed}}


def _stored(name: str, value: Any) -> Any:
    if name in LISTS:
        parts = value.split(",")
        return [int(part) for part in parts] if name == "seeds" else parts
    return absolute(value) if name in PATHS else value


def _parsed(file: str) -> Mapping[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        if not file.endswith(".json"):
            return tomllib.loads(text)
        found = json.loads(text)
    except OSError as error:
        raise ValueError(f"--plan {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"--plan {file}: not a TOML file, nor JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("plan"), dict):
        raise ValueError(f"--plan {file}: contains no plan: give a study.toml, or the study.json of a study")
    return dict(found["plan"])


def _flat(tables: Mapping[str, Any], file: str) -> dict[str, str]:
    """Flag -> value as typed, of all tables."""
    found: dict[str, str] = {}
    changed: dict[str, str] = {}
    for name, value in tables.items():
        if name in TABLES[""]:
            found[name] = _word(name, value, f"--plan {file}: {name}")
        elif name != "set" and name not in TABLES:
            raise ValueError(f"--plan {file}: no key {name}; {_nearest(name, [*TABLES[''], *list(TABLES)[1:], 'set'])}")
        elif not isinstance(value, dict):
            raise ValueError(f"--plan {file}: {name} must be a table, [{name}]")
        else:
            for key, inner in value.items():
                where = f"--plan {file}: [{name}] {key}"
                if key in TABLES.get(name, ()):
                    found[key] = _word(key, inner, where)
                elif name == "set" or (name == "conditions" and key in CONDITION_FIELDS):
                    if key in changed:
                        raise ValueError(f"{where} is in two tables: remove one")
                    changed[key] = _field(inner, where)
                else:
                    known = [*TABLES[name], *(CONDITION_FIELDS if name == "conditions" else ())]
                    raise ValueError(f"{where}: no such key; {_nearest(key, known)}")
    return found | {"set": ",".join(f"{name}={value}" for name, value in changed.items())}


def _word(name: str, value: Any, where: str) -> str:
    """A key's value as typed. ValueError for one of another kind than the flag's."""
    if name in LISTS:
        parts = value if isinstance(value, list) else [value]
        wanted = (str,) if LISTS[name] == "text" else (int,) if name == "seeds" else (int, str)
        if not parts or not all(isinstance(part, wanted) and not isinstance(part, bool) for part in parts):
            raise ValueError(f"{where} must be a list of which each is {LISTS[name]}, got {value!r}")
        return ",".join(map(str, parts))
    hint = typing.get_type_hints(SweepFlags)[name]
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if not any(_is(value, kind) for kind in kinds):
        raise ValueError(f"{where} must be {' or '.join(_kind_name(kind) for kind in kinds)}, got {value!r}")
    return str(value)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _is(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind))
    return NAMES[kind]


def _field(value: Any, where: str) -> str:
    """A field's value as --set takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and value and all(isinstance(part, (int, float)) for part in value):
        return ":".join(map(str, value))
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{where} must be text, a number, true, false or a list of numbers, got {value!r}")
    if isinstance(value, str) and "," in value:
        raise ValueError(f"{where} must not contain a comma, got {value!r}")
    return str(value)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"


def _without_flag(words: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """The words without the flag and its value, and that value."""
    rest, value, given = [], None, iter(words)
    for word in given:
        flag, equals, text = word.partition("=")
        if flag != f"--{name}":
            rest.append(word)
        elif (value := text if equals else next(given, None)) is None:
            raise ValueError(f"--{name} needs a file")
    return rest, value
