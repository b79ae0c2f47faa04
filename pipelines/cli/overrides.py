"""`--set name=value,...`: changes fields of a preset that have no flag of their own.

How: a value is parsed by its field's type (`scales=1:4:16:64` for a tuple), and the configuration checks it as it
checks a preset. The changed value is part of the configuration, and so of the run's name.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from pipelines.cli.errors import UsageError

OWN_FLAGS = ("steps", "batch_size", "seed")


def overridden(text: str | None, *configs: Any, seed_flag: str = "--seed") -> tuple[Any, ...]:
    """The configurations with the changes that `text` lists. UsageError for an unknown name or an invalid value."""
    changes: list[dict[str, Any]] = [{} for _ in configs]
    hints = [typing.get_type_hints(type(config)) for config in configs]
    for part in filter(None, (text or "").split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"--set {part!r} is not name=value")
        if name in OWN_FLAGS:
            raise UsageError(
                f"--set {name}: it has a flag of its own, "
                f"{seed_flag if name == 'seed' else '--' + name.replace('_', '-')}"
            )
        owner = next((k for k, known in enumerate(hints) if name in known), None)
        if owner is None:
            raise UsageError(_unknown(name, sorted(set().union(*hints) - set(OWN_FLAGS))))
        try:
            changes[owner][name] = parse(value, hints[owner][name])
        except ValueError as error:
            raise UsageError(f"--set {name}: {error}") from None
    try:
        return tuple(dataclasses.replace(config, **change) for config, change in zip(configs, changes, strict=True))
    except ValueError as error:
        raise UsageError(f"--set {text}: {error}") from None


def parse(value: str, kind: Any) -> Any:
    """A value of the annotated type `kind`: bool, int, float, str, Literal, tuple[X, ...], X | None."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return (
            None
            if value == "none" and type(None) in arguments
            else parse(value, next(a for a in arguments if a is not type(None)))
        )
    if origin is tuple:
        return tuple(parse(part, arguments[0]) for part in value.split(":"))
    if origin is typing.Literal:
        return _one_of(value, {str(choice): choice for choice in arguments})
    if kind is bool:
        return _one_of(value, {"true": True, "false": False})
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{value!r} is not of type {kind.__name__}") from None


def _one_of(value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    return choices[value]


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"--set {name}: no such field; "
        f"{'did you mean ' + ', '.join(close) if close else 'the fields are ' + ', '.join(known)}"
    )
