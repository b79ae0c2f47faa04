"""The section about a tokenizer's evaluation: inputs beside reconstructions, IoU by number of scales, metrics with their protocol."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from pipelines.gallery import decode_cloud, folder_of
from pipelines.report_evaluations import HINT, mesh_of, no_gallery, protocol, task
from pipelines.report_html import Page, caption, card, cards, columns, join, paragraph, table
from pipelines.report_machine import note_environment
from pipelines.report_meshes import cloud_object, inside
from pipelines.report_plots import Series, plot
from pipelines.report_values import Source, read_json


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
    body = [task(source)]
    if pairs:
        body += [
            paragraph(
                f"Left the input's surface points with normals, right the reconstruction; both turn together. {HINT}",
                "soft",
            ),
            cards(pairs, "pairs"),
        ]
    else:
        body.append(no_gallery())
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
    mesh, why_not = mesh_of(file, entry)
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
