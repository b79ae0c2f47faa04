"""The section about generated meshes: each with its prompt and seed; failed samples are shown as failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from g3pt.geometry.files import read_mesh
from pipelines.cli.paths import file_below
from pipelines.report.common import failure_line, note_command, unfinished
from pipelines.report.html import Page, caption, card, cards, facts, paragraph, table, text
from pipelines.report.meshes import mesh_object
from pipelines.report.values import Source, read_parquet

SHOWN_SAMPLES, LISTED_SAMPLES = 16, 200


def generation(page: Page, folder: Path) -> None:
    """Add the section about a folder of generated meshes."""
    note = note_command(page, folder, "the generated meshes")
    if not (folder / "manifest.parquet").is_file():
        page.add(page.heading("Generated meshes", folder), *unfinished(folder, note, "samples/**/*.json", "samples"))
        return
    manifest = read_parquet(folder / "manifest.parquet", page.root, LISTED_SAMPLES)
    shown = [_sample(page, folder, manifest.at(k)) for k in range(min(len(manifest.value), SHOWN_SAMPLES))]
    body = [
        paragraph(
            "Each prompt with its seed, none left out. Drag to turn them, or use the arrow keys, + and −.", "soft"
        ),
        cards(shown),
    ]
    rest = range(SHOWN_SAMPLES, len(manifest.value))
    if rest:
        body.append(
            table(
                ("prompt", "seed", "status", "faces"),
                [_row(manifest.at(k)) for k in rest],
                f"The next {len(rest)} samples",
            )
        )
    first = manifest.at(0)
    body.append(
        facts(
            [
                ("Model", text(Path(str(first.get("model", default=""))).name)),
                (
                    "Guidance",
                    Markup("{} ({})").format(first.number("cfg", spec="g"), first.get("cfg_schedule", default="")),
                ),
                (
                    "Temperature / top-k / top-p",
                    Markup(" / ").join(first.number(name, spec="g") for name in ("temperature", "top_k", "top_p")),
                ),
                ("Grid cells per side", first.number("resolution", spec="d")),
            ]
        )
    )
    failure = failure_line(folder)
    page.add(page.heading("Generated meshes", folder), *([failure] if failure else []), *body)


def _prompt(row: Source) -> str:
    """The prompt in words."""
    words = " + ".join(filter(None, (row.get("text"), f"picture {row.get('image')}" if row.get("image") else "")))
    return words or str(row.get("id", default="no prompt"))


def _sample(page: Page, folder: Path, row: Source) -> Markup:
    """A generated mesh to turn, or the reason why there is none."""
    shape, why_not = None, f"failed: {row.get('error', default='no reason noted')}"
    if row.get("status") == "ok":
        try:
            file = file_below(folder, str(row.get("file")))
            why_not = f"{row.get('file')} is missing"
            shape = mesh_object(*read_mesh(file), "model") if file else None
        except ValueError as error:
            why_not = str(error)
    label = str(row.get("text") or row.get("id"))
    details = Markup("seed {} · {} faces · {}").format(
        row.number("seed", spec="d"), row.number("faces", spec=",d"), row.number("seconds", spec=".1f", unit="\u00a0s")
    )
    return card(
        page.view(shape, label, why_not=why_not),
        caption(_prompt(row)),
        details if shape else Markup("seed {} · failed").format(row.number("seed", spec="d")),
    )


def _row(row: Source) -> tuple[Any, ...]:
    return text(_prompt(row)), row.number("seed", spec="d"), text(row.get("status")), row.number("faces", spec=",d")
