"""Finished output of other settings: named and left alone, unless --replace is given.

Each stage knows what of its output is finished and with which settings; how they are compared and what is said is here.
Changed inputs (objects, prompts, weights) are no settings: they redo what depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cli.errors import UsageError


def changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What both name and have as different values: "--resolution 24, not 32"."""
    return [
        f"{name} {_shown(stored[name])}, not {_shown(value)}"
        for name, value in wanted.items()
        if name in stored and _shown(stored[name]) != _shown(value)
    ]


def check_unchanged(output: object, found: Sequence[str], *, replace: bool) -> None:
    """UsageError, with the `found` changes, if there are any and --replace is not given."""
    if found and not replace:
        raise UsageError(
            f"{output} was made with {'; '.join(found)}: choose another --output, or give --replace to make it anew"
        )


def flag(name: str) -> str:
    """`num_shards` as `--num-shards`."""
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    """A value as on the command line, where a tuple or list is comma-separated."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    return value if isinstance(value, str) else json.dumps(value)
