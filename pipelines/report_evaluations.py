"""Sections about evaluations: inputs beside reconstructions with IoU by scales, samples beside prompts, and every number's protocol."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.gallery import decode_cloud, folder_of
from pipelines.report_html import (
    Page,
    caption,
    card,
    cards,
    columns,
    facts,
    folded,
    join,
    paragraph,
    side_by_side,
    table,
    text,
)
from pipelines.report_machine import note_environment
from pipelines.report_meshes import cloud_object, inside, mesh_object, read_mesh
from pipelines.report_plots import Series, plot
from pipelines.report_values import NONE, Source, read_json

HINT = "Drag to turn; with the keyboard: arrow keys, + and −."


# ---------------------------------------------------------------------------------------------------------- tokenizer


def tokenizer(page: Page, file: Path) -> None:
    """Reconstruction: pairs to turn, IoU by number of scales, metrics with protocol."""
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
    pairs = [_pair(page, file, source.at("gallery", k)) for k in range(len(source.get("gallery", default=[])))]
    body = [_task(source)]
    if pairs:
        body += [
            paragraph(
                f"Left the input's surface points with normals, right the reconstruction; both turn together. {HINT}",
                "soft",
            ),
            cards(pairs, "pairs"),
        ]
    else:
        body.append(_no_gallery())
    body += [
        columns(_scales_plot(metrics), join([_scales_table(metrics), _tokenizer_table(metrics)])),
        protocol(source),
    ]
    page.add(page.heading("Reconstructions", file), *body)


def _objects(source: Source) -> Markup:
    return Markup("{} objects of split {}").format(
        source.number("metrics", "num_objects", spec=",d"), source.get("dataset", "split")
    )


def _pair(page: Page, file: Path, entry: Source) -> Markup:
    """An input and what came back."""
    page.credit(entry.value)
    words = str(entry.get("caption") or entry.get("id"))
    group, cloud, mesh = f"{file.stem}-{entry.get('id')}", None, None
    found = inside(folder_of(file), str(entry.get("cloud") or ""))
    try:
        cloud = cloud_object(decode_cloud(found.read_bytes()), "data") if found else None
    except ValueError:
        cloud = None
    mesh, why_not = _mesh(file, entry)
    views = Markup(
        '<div class="pair"><div>{}<div class="which">input</div></div><div>{}<div class="which">reconstruction</div></div></div>'
    ).format(
        page.view(cloud, f"Input: {words}", group, "input is not there"),
        page.view(mesh, f"Reconstruction: {words}", group, why_not),
    )
    return card(
        views,
        caption(words),
        Markup("volume IoU <strong>{}</strong>, near the surface {}").format(
            entry.number("iou_volume"), entry.number("iou_near")
        ),
    )


def _mesh(file: Path, entry: Source) -> tuple[dict[str, Any] | None, str]:
    """The entry's mesh for the viewer, or why there is none."""
    if entry.get("status") != "ok":
        return None, f"no mesh: {entry.get('status', default='no status')}"
    found = inside(folder_of(file), str(entry.get("mesh") or ""))
    if found is None:
        return None, "the mesh file is not there"
    try:
        return mesh_object(*read_mesh(found), "model"), ""
    except ValueError as error:
        return None, str(error)


def _num_scales(metrics: Source) -> int:
    return sum(name.startswith("iou_first_") for name in metrics.value or {})


def _scales_plot(metrics: Source) -> Markup:
    ks = list(range(1, _num_scales(metrics) + 1))
    first = Series(
        label="decoding the first k scales", x=ks, y=[metrics.get(f"iou_first_{k}_scales") for k in ks], style="both"
    )
    lost = Series(
        label="lost when scale k has another object's codes",
        x=ks,
        y=[metrics.get(f"iou_drop_shuffled_scale_{k}") for k in ks],
        style="both",
        colour=1,
    )
    return plot(
        "IoU by number of scales", [first, lost], x_label="k", y_label="volume IoU", y_range=(min([0.0, *lost.y]), 1.0)
    )


def _scales_table(metrics: Source) -> Markup:
    rows = [
        (str(k), metrics.number(f"iou_first_{k}_scales"), metrics.number(f"iou_drop_shuffled_scale_{k}"))
        for k in range(1, _num_scales(metrics) + 1)
    ]
    return table(("k", "IoU, first k scales", "IoU lost, scale k shuffled"), rows, "IoU by number of scales")


def _tokenizer_table(metrics: Source) -> Markup:
    names = {
        "iou_volume": "Volume IoU",
        "iou_near": "IoU near the surface",
        "chamfer": "Chamfer distance",
        "normal_consistency": "Normal consistency",
    }
    names |= {
        name: f"F-score at {name.rpartition('_')[2]}"
        for name in metrics.value or {}
        if name.startswith("f_score_") and not name.endswith("_95")
    }
    rows = [
        (
            label,
            metrics.number(name, spec=".4f" if name == "chamfer" else ".3f"),
            metrics.interval(f"{name}_interval_95", spec=".4f" if name == "chamfer" else ".3f"),
        )
        for name, label in names.items()
    ]
    rows.append(
        (
            "Objects / without a mesh",
            Markup("{} / {}").format(
                metrics.number("num_objects", spec=",d"), metrics.number("num_without_mesh", spec=",d")
            ),
            Markup(""),
        )
    )
    return table(("metric", "value", "95 % interval"), rows, "Reconstruction metrics")


# ---------------------------------------------------------------------------------------------------------- generator


def generator(page: Page, file: Path) -> None:
    """Samples beside prompts and seeds, family accuracy with its chance level, distances to training objects, protocol."""
    source = read_json(file, page.root)
    note_environment(page, source, "the generator's evaluation")
    metrics = source.at("metrics")
    if metrics.get("family_accuracy") is not None:
        page.tile(
            metrics.number("family_accuracy"),
            "samples of the prompted family",
            Markup("chance {}").format(metrics.number("family_chance")),
        )
    samples = [_sample(page, file, source, k) for k in range(len(source.get("gallery", default=[])))]
    body = [_task(source)]
    body += (
        [paragraph(f"The first samples, none left out. {HINT}", "soft"), cards(samples)] if samples else [_no_gallery()]
    )
    body += [side_by_side(_accuracies(metrics), _distances(metrics)), protocol(source)]
    page.add(page.heading("Evaluation of the generator", file), *body)


def _sample(page: Page, file: Path, source: Source, k: int) -> Markup:
    """One sample with its prompt, seed and nearest training object."""
    entry, scored = source.at("gallery", k), source.at("objects", source.get("gallery", k, "object", default=-1))
    mesh, why_not = _mesh(file, entry)
    words = str(scored.get("text") or "no prompt")
    seen = {True: "prompt never trained on", False: "prompt seen in training"}.get(scored.get("unseen"), "")
    lines = [caption(words), Markup("seed {} · {}").format(scored.number("seed", spec="d"), seen)]
    if scored.get("nearest"):
        lines.append(
            Markup("nearest in training: {}, Chamfer {}").format(
                text(scored.get("nearest_family") or scored.get("nearest")), scored.number("chamfer")
            )
        )
    return card(page.view(mesh, words, why_not=why_not), *lines)


def _accuracies(metrics: Source) -> Markup:
    parts = (("All texts", "family_{}", "num_labelled"), ("Seen in training", "family_{}_seen", "num_labelled_seen"),
             ("Never trained on", "family_{}_unseen", "num_labelled_unseen"), ("A held-out picture, no text", "image_family_{}", "image_num_labelled"))  # fmt: skip
    rows = []
    for label, name, count in parts:
        accuracy = name.format("accuracy")
        if metrics.get(accuracy) is not None:
            rows.append(
                (
                    label,
                    metrics.number(accuracy),
                    metrics.interval(f"{accuracy}_interval_95"),
                    metrics.number(name.format("chance")),
                    metrics.number(count, spec=",d"),
                )
            )
    if metrics.get("held_out_nearest_family_accuracy") is not None:
        rows.append(
            (
                "Held-out objects (a ceiling)",
                metrics.number("held_out_nearest_family_accuracy"),
                Markup(""),
                Markup(""),
                metrics.number("num_held_out", spec=",d"),
            )
        )
    return (
        table(
            ("prompts", "share", "95 % interval", "chance", "samples"),
            rows,
            "Samples whose nearest training object is of the prompted family",
        )
        if rows
        else Markup("")
    )


def _distances(metrics: Source) -> Markup:
    rows = [
        (
            "Samples, median",
            metrics.number("nearest_chamfer_median", spec=".4f"),
            metrics.interval("nearest_chamfer_median_interval_95", spec=".4f"),
        ),
        ("Held-out objects, median", metrics.number("held_out_nearest_chamfer_median", spec=".4f"), Markup("")),
        ("An exact copy would have", metrics.number("nearest_chamfer_of_a_copy", spec=".4f"), Markup("")),
        (
            "Samples / without a mesh",
            Markup("{} / {}").format(
                metrics.number("num_samples", spec=",d"), metrics.number("num_without_mesh", spec=",d")
            ),
            Markup(""),
        ),
    ]
    return table(("", "value", "95 % interval"), rows, "Chamfer distance to the nearest training object")


# ----------------------------------------------------------------------------------------------------------- protocol


def _task(source: Source) -> Markup:
    words = str(source.get("protocol", "task", default=""))
    return paragraph(words[:1].upper() + words[1:] + ".", "soft")


def _no_gallery() -> Markup:
    return paragraph(
        "This evaluation kept no meshes (made with --num-pictures 0, or by an older version): start its command again with another --output to keep some.",
        "soft",
    )


def protocol(source: Source) -> Markup:
    """How each number was made, word for word."""
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
