"""The training objects that an export lists: id, licence, author and address of each.

How: `note` returns the value of `trained_on` in config.json: the rows themselves or, for more than MAX_INLINE objects,
the name, size and sha256 of a file of JSON lines beside it (with 800,000 rows every reader of config.json would parse
100 MB). `read` returns the rows in both cases.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g3pt.data import reading, storage
from g3pt.data.selection import Selection
from g3pt.training.exports import find_export, read_export_config

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec

MAX_INLINE = 2000
Row = dict[str, str]


def collect(spec: RunSpec) -> list[Row]:
    """The training objects of a run and of the exports whose weights it took, sorted by id, each once."""
    selection = Selection.of(spec.config)
    rows = reading.read_rows(
        spec.paths["data"], ["id", "license", "author", "attribution_url", "source_url"], split="train"
    )
    kept = [
        {
            "id": row["id"],
            "license": row["license"],
            "author": row["author"],
            "url": row["attribution_url"] or row["source_url"],
        }
        for row in rows
        if selection.keeps(row)
    ]
    for name in ("init_from", "text_encoder"):  # their weights contain what they were trained on
        kept += read(spec.paths[name]) if name in spec.paths else []
    return [by_id for _, by_id in sorted({row["id"]: row for row in reversed(kept)}.items())]


def note(rows: Sequence[Row], folder: Path, name: str = "trained_on") -> Any:
    """The value of `name` in config.json. Many rows are written to a file of that name in the export's `folder`."""
    if len(rows) <= MAX_INLINE:
        return list(rows)
    data = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(folder / f"{name}.jsonl", data)
    licenses = dict(sorted(Counter(row["license"] for row in rows).items()))
    return {
        "file": f"{name}.jsonl",
        "objects": len(rows),
        "licenses": licenses,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def read(export: str | Path, name: str = "trained_on") -> list[Row]:
    """The rows that an export (or finished run) lists under `name`.

    ValueError if their file is missing or was changed.
    """
    folder = find_export(export)
    found = read_export_config(folder).get(name) or []
    if isinstance(found, list):
        return found
    file = folder / f"{name}.jsonl"  # not the name in config.json, which could point anywhere
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{file} is missing: according to config.json it lists {found.get('objects')} objects"
        ) from None
    if hashlib.sha256(data).hexdigest() != found.get("sha256"):
        raise ValueError(f"{file} was changed after config.json was written (its sha256 differs)")
    return [json.loads(line) for line in data.splitlines()]
