"""Shared by the sections about evaluations: meshes from the gallery, and the protocol of the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from g3pt.geometry.files import read_mesh
from pipelines.cli.paths import file_below
from pipelines.evaluate.gallery import folder_of
from pipelines.report.html import facts, folded, join, paragraph, text
from pipelines.report.meshes import mesh_object
from pipelines.report.values import NONE, Source

HINT = "Drag to turn them, or use the arrow keys, + and −."


def mesh_of(file: Path, entry: Source) -> tuple[dict[str, Any] | None, str]:
    """(the entry's mesh for the viewer or None, the reason if there is none)."""
    if entry.get("status") != "ok":
        return None, f"no mesh: {entry.get('status', default='no status')}"
    found = file_below(folder_of(file), str(entry.get("mesh") or ""))
    if found is None:
        return None, "the mesh file is missing"
    try:
        return mesh_object(*read_mesh(found), "model"), ""
    except ValueError as error:
        return None, str(error)


def task(source: Source) -> Markup:
    words = str(source.get("protocol", "task", default=""))
    return paragraph(words[:1].upper() + words[1:] + ".", "soft")


def no_gallery() -> Markup:
    return paragraph(
        "This evaluation kept no meshes (made with --num-pictures 0, or by an older version). Run its command again "
        "with another --output to keep some.",
        "soft",
    )


def protocol(source: Source) -> Markup:
    """The protocol: how each number was made."""
    pairs = list(_flat(source.get("protocol", default={})))
    model, dataset = source.get("model", default={}), source.get("dataset", default={})
    pairs += [
        ("model", model.get("path")),
        ("weights, sha256", model.get("export_sha256")),
        ("dataset", dataset.get("path")),
        ("dataset fingerprint", dataset.get("fingerprint")),
        ("split", dataset.get("split")),
    ]
    listed = facts((name.replace("_", " "), text(value)) for name, value in pairs)
    seconds = (
        Markup("<p class='soft'>Took {}.</p>").format(source.number("seconds", spec=".1f", unit="\u00a0s"))
        if source.get("seconds") is not None
        else NONE
    )
    return join([folded("How these numbers were made", listed), seconds])


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value
