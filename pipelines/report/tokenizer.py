"""The section about a tokenizer's evaluation: inputs beside reconstructions, the worst ones, metrics with their
protocol.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from pipelines.cli.paths import file_below
from pipelines.evaluate.gallery import decode_cloud, folder_of
from pipelines.report.common import note_environment
from pipelines.report.evaluations import HINT, mesh_of, no_gallery, protocol, task
from pipelines.report.html import Page, caption, card, cards, columns, paragraph
from pipelines.report.meshes import cloud_object
from pipelines.report.reconstruction import (
    categories,
    compared_table,
    figures_table,
    scales_plot,
    scales_table,
    thickness_table,
)
from pipelines.report.values import Source, read_json


def tokenizer(page: Page, file: Path) -> None:
    """Add the section: pairs to turn, IoU by number of scales, metrics, protocol."""
    source = read_json(file, page.root)
    note_environment(page, source, "the tokenizer's evaluation")
    metrics = source.at("metrics")
    page.tile(
        metrics.number("iou_volume"),
        "volume IoU of reconstructions",
        Markup("{} unseen objects").format(metrics.number("num_objects", spec=",d"))
        if source.get("dataset", "split") == "test"
        else _objects(source),
    )
    entries = [source.at("gallery", k) for k in range(len(source.get("gallery", default=[])))]
    body = [task(source), *(_pictures(page, file, entries) if entries else [no_gallery()])]
    body += [
        columns(scales_plot(metrics), scales_table(metrics)),
        figures_table(metrics),
        thickness_table(metrics),
        compared_table(metrics),
        categories(metrics),
        protocol(source),
    ]
    page.add(page.heading("Reconstructions", file), *body)


def _pictures(page: Page, file: Path, entries: list[Source]) -> list[Markup]:
    """The objects spread evenly over the split; then the worst ones that are not among them."""
    spread = [entry for entry in entries if entry.get("spread") or entry.get("worst") is None]
    worst = sorted((entry for entry in entries if entry not in spread), key=lambda entry: entry.get("worst"))
    shown = [
        paragraph(
            f"Left: surface points of the input with normals. Right: the reconstruction. Both turn together. {HINT}",
            "soft",
        ),
        cards([_pair(page, file, entry) for entry in spread], "pairs"),
    ]
    if worst:
        shown += [
            paragraph("The objects of the split with the lowest volume IoU that are not among those above.", "soft"),
            cards([_pair(page, file, entry) for entry in worst], "pairs"),
        ]
    return shown


def _objects(source: Source) -> Markup:
    return Markup("{} objects of split {}").format(
        source.number("metrics", "num_objects", spec=",d"), source.get("dataset", "split")
    )


def _pair(page: Page, file: Path, entry: Source) -> Markup:
    """An input and its reconstruction."""
    page.credit(entry.value)
    words = str(entry.get("caption") or entry.get("id"))
    group, cloud, mesh = f"{file.stem}-{entry.get('id')}", None, None
    found = file_below(folder_of(file), str(entry.get("cloud") or ""))
    try:
        cloud = cloud_object(decode_cloud(found.read_bytes()), "data") if found else None
    except ValueError:
        cloud = None
    mesh, why_not = mesh_of(file, entry)
    views = Markup(
        '<div class="pair"><div>{}<div class="which">input</div></div><div>{}<div '
        'class="which">reconstruction</div></div></div>'
    ).format(
        page.view(cloud, f"Input: {words}", group, "the input is missing"),
        page.view(mesh, f"Reconstruction: {words}", group, why_not),
    )
    return card(
        views,
        caption(words),
        Markup("volume IoU <strong>{}</strong>, near the surface {}{}").format(
            entry.number("iou_volume"),
            entry.number("iou_near"),
            Markup("; number {} from the bottom").format(entry.number("worst", spec="d")) if entry.get("worst") else "",
        ),
    )
