"""The section about a dataset: counts, failures, licences, slowest objects, and some objects to turn."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from pipelines.report.common import note_command, unfinished
from pipelines.report.html import (
    Page,
    bar,
    caption,
    card,
    cards,
    facts,
    join,
    packed,
    paragraph,
    table,
    text,
)
from pipelines.report.meshes import cloud_object, mesh_object
from pipelines.report.values import Source, Unreadable, read_json

SHOWN_OBJECTS, SAMPLED_SHARDS, COUNTED_SHARDS, MAX_CATEGORIES, SHOWN_SLOWEST = 12, 6, 150, 20, 5
KINDS = {"category": "Categories", "license": "Licences"}
HISTOGRAMS = {
    "num_faces": "Faces of the original mesh",
    "volume": "Volume of the solid (the box has 8)",
    "thickness": "Thickness of the solid (2 x volume / area)",
    "chamfer_to_input": "Chamfer distance from the solid to the original mesh",
    "largest_component_share": "Longest side of the largest component, as a share of the object's",
    "filled_share": "Share of the solid that filling added, of filled objects",
    "seconds": "Seconds per object",
}
LIGHT = ("id", "status", "split", "category", "caption", "license", "author", "attribution_url", "source_url")


def dataset(page: Page, folder: Path) -> None:
    """Add the section about a dataset, finished or not."""
    from g3pt.data.datasets import open_dataset

    note = note_command(page, folder, "the dataset")
    if not (folder / "dataset.json").is_file():
        page.add(page.heading("Dataset", folder), *unfinished(folder, note, "shard-*.json", "shards"))
        return
    source = read_json(folder / "dataset.json", page.root)
    try:
        info = open_dataset(folder)
    except ValueError as error:
        raise Unreadable(str(error)) from error
    total = sum(info.counts.values())
    page.tile(source.number("counts", "ok", spec=",d"), "objects in the dataset", _failed_note(source, total))
    settings = source.at("config")
    made = card_of(page, folder, info)
    try:
        objects = _objects(page, info)
        kinds = [*_kinds_of(made), _slowest_of(made)] if made else [*_kinds(info), _slowest(page, info)]
    except (OSError, pa.ArrowException) as error:  # a damaged shard
        raise Unreadable(f"{folder}: {error}") from error
    page.add(
        page.heading("Dataset", folder),
        facts(
            [
                *((f"{split} objects", source.number("splits", split, spec=",d")) for split in info.splits),
                ("Shards", source.number("num_shards", spec=",d")),
                ("Grid cells per side", settings.number("convert", "resolution", spec="d")),
                ("Surface points per object", source.number("record", "num_surface", spec=",d")),
                ("Query points of each kind per object", source.number("record", "num_queries", spec=",d")),
                ("Views per object", source.number("record", "num_views", spec="d")),
                ("Fingerprint", text(info.fingerprint[:16])),
            ]
        ),
        objects,
        _spread_and_not_ok(made, total - info.counts.get("ok", 0)) if made else Markup(""),
        packed(
            [
                _counts(source, "counts", "Objects by status", total),
                _counts(source, "failures", "Why objects failed", total),
                *kinds,
            ]
        ),
    )


def card_of(page: Page, folder: Path, info: Any) -> Source | None:
    """The card written by preprocessing, if it belongs to exactly this dataset; else None."""
    from pipelines.preprocess.dataset_card import CARD

    if not (folder / CARD).is_file():
        return None
    made = read_json(folder / CARD, page.root)
    return (
        made if made.get("fingerprint") == info.fingerprint else None
    )  # otherwise it describes an earlier state of the dataset


def _spread_and_not_ok(made: Source, num_not_ok: int) -> Markup:
    """A card's histograms, and the objects that are not ok with their reasons."""
    drawn = [_histogram(made, name, title) for name, title in HISTOGRAMS.items()]
    rows = [(text(item["id"]), text(item["status"]), text(item["error"])) for item in made.get("not_ok", default=[])]
    title = f"Objects that are not ok: {len(rows):,d} of {num_not_ok:,d}"
    listed = table(("object", "status", "why"), rows, title) if rows else Markup("")
    return join(
        [
            paragraph("Distributions over the ok objects. Bins of sizes end at about three times their start.", "soft"),
            *_filled(made),
            *_small(made),
            packed(drawn),
            listed,
        ]
    )


def _filled(made: Source) -> Iterator[Markup]:
    """A paragraph that counts objects of which enclosed air was filled, if there are any."""
    if made.get("filled", default=0):
        words = "Ok objects whose open surface encloses air, which was filled: {}."
        yield paragraph(Markup(words).format(made.number("filled", spec=",d")))


def _small(made: Source) -> Iterator[Markup]:
    """A paragraph that counts objects which parts far away shrink, if there are any."""
    if made.get("small_largest_component", default=0):
        words = "Ok objects that far parts shrink (their largest component has less than half their longest side): {}."
        yield paragraph(Markup(words).format(made.number("small_largest_component", spec=",d")))


def _kinds_of(made: Source) -> Iterator[Markup]:
    """Categories and licences, from a card."""
    for name, title in KINDS.items():
        counts = made.get(name, default={})
        shown = list(counts)[:MAX_CATEGORIES]
        more = made.get("num_names", name, default=len(counts)) - len(shown)
        if shown:
            rows = [
                bar(made.number(name, value, spec=",d"), counts[value] / counts[shown[0]], value) for value in shown
            ]
            yield table((), rows, f"{title} of ok objects" + (f"; {more:,d} more" if more else ""))


def _slowest_of(made: Source) -> Markup:
    """The slowest objects, from a card."""
    slowest = made.get("slowest", default=[])[:SHOWN_SLOWEST]
    rows = [
        (text(item["id"]), made.number("slowest", at, "seconds", spec=".2f", unit="\u00a0s"))
        for at, item in enumerate(slowest)
    ]
    return table((), rows, "The slowest objects") if rows else Markup("")


def _histogram(source: Source, name: str, title: str) -> Markup:
    """One bar per bin, from the first to the last that is not empty."""
    edges, counts = (source.get("histograms", name, what, default=[]) for what in ("edges", "counts"))
    filled = [at for at, count in enumerate(counts) if count]
    if not filled:
        return Markup("")
    most = max(counts)
    labels = [
        f"below {edges[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)),
        f"{edges[-1]:g} and more",
    ]
    shown = range(filled[0], filled[-1] + 1)
    return table(
        (),
        [
            bar(source.number("histograms", name, "counts", at, spec=",d"), counts[at] / most, labels[at])
            for at in shown
        ],
        title,
    )


def _failed_note(source: Source, total: int) -> Markup | str:
    failed = [name for name in source.get("counts", default={}) if name != "ok"]
    if not failed:
        return "none failed"
    return Markup(", ").join(Markup("{} {}").format(source.number("counts", name, spec=",d"), name) for name in failed)


def _counts(source: Source, key: str, title: str, total: int) -> Markup:
    """One bar per name in a mapping of counts."""
    counts = source.get(key, default={})
    rows = [
        bar(source.number(key, name, spec=",d"), count / max(total, 1), name)
        for name, count in sorted(counts.items(), key=lambda pair: -pair[1])
    ]
    return table((), rows[:MAX_CATEGORIES], title) if rows else Markup("")


def _kinds(info: Any) -> Iterator[Markup]:
    """Categories and licences of the ok objects of a dataset without a card, from at most COUNTED_SHARDS shards."""
    chosen = spread(sorted(info.shards), COUNTED_SHARDS)
    found: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for index in chosen:
        with _opened(info, index) as file:
            columns_read = file.read(columns=["status", *found], use_threads=False)
        ok = [status == "ok" for status in columns_read["status"].to_pylist()]
        for name, counter in found.items():
            counter.update(
                value or "not stated" for value, good in zip(columns_read[name].to_pylist(), ok, strict=True) if good
            )
    where = "" if len(chosen) == len(info.shards) else f", counted in {len(chosen)} of {len(info.shards)} shards"
    for name, title in KINDS.items():
        most = found[name].most_common(MAX_CATEGORIES)
        rows = [
            bar(Markup("<span>{}</span>").format(f"{count:,d}"), count / most[0][1], value) for value, count in most
        ]
        more = len(found[name]) - len(most)
        if rows:
            yield table((), rows, f"{title} of ok objects{where}" + (f"; {more} more" if more else ""))


def _slowest(page: Page, info: Any) -> Markup:
    """The slowest objects of a dataset without a card, from the sidecars of some shards."""
    from g3pt.data.records import shard_name

    chosen = spread(sorted(info.shards), COUNTED_SHARDS)
    sidecars = [
        read_json(info.path / f"{shard_name(index)}.json", page.root)
        for index in chosen
        if (info.path / f"{shard_name(index)}.json").is_file()
    ]
    times = [
        (seconds, object_id, sidecar)
        for sidecar in sidecars
        for object_id, seconds in (sidecar.get("seconds", default=None) or {}).items()
    ]
    rows = [
        (text(object_id), sidecar.number("seconds", object_id, spec=".2f", unit="\u00a0s"))
        for _, object_id, sidecar in sorted(times, key=lambda entry: -entry[0])[:SHOWN_SLOWEST]
    ]
    return (
        table(
            (), rows, "The slowest objects" + ("" if len(chosen) == len(info.shards) else f" of {len(chosen)} shards")
        )
        if rows
        else Markup("")
    )


def _objects(page: Page, info: Any) -> Markup:
    """Some objects to turn, of different categories if the dataset has categories."""
    shown = []
    for row in sample_objects(info, SHOWN_OBJECTS):
        page.credit(row)
        name = row["caption"] or row["id"]
        shown.append(
            card(
                page.view(row["shape"], name),
                caption(name),
                Markup('<span class="soft">{}</span>').format(
                    " · ".join(filter(None, (row["category"], row["split"], row["license"])))
                ),
            )
        )
    what = (
        "the stored solids"
        if info.config.keep_solid
        else "the stored surface points with their normals, drawn as small discs"
    )
    return (
        join(
            [
                paragraph(f"Some objects: {what}. Drag to turn them, or use the arrow keys, + and −.", "soft"),
                cards(shown),
            ]
        )
        if shown
        else Markup("")
    )


def sample_objects(info: Any, count: int) -> list[dict[str, Any]]:
    """Up to `count` ok rows with a `shape` for the viewer, from a few row groups of a few shards, spread over the
    categories.
    """
    per_group = -(-count // min(SAMPLED_SHARDS, max(1, len(info.shards))))
    seen: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for index in spread(sorted(info.shards), SAMPLED_SHARDS):
        with _opened(info, index) as file:
            for group in spread(range(file.num_row_groups), 2):
                rows = [
                    dict(row, place=k)
                    for k, row in enumerate(
                        file.read_row_group(group, columns=list(LIGHT), use_threads=False).to_pylist()
                    )
                ]
                chosen = _new_categories(
                    [row for row in rows if row["status"] == "ok"], seen, min(per_group, count - len(found))
                )
                found += _with_shapes(file, group, chosen, info)
    return found[:count]


def _opened(info: Any, index: int) -> pq.ParquetFile:
    if not info.shard_path(index).is_file():
        raise Unreadable(f"{info.shard_path(index)} is missing although dataset.json lists it")
    return pq.ParquetFile(info.shard_path(index))


def _new_categories(rows: list[dict[str, Any]], seen: Counter[str], count: int) -> list[dict[str, Any]]:
    """`count` rows, first those whose category was chosen least often."""
    chosen: list[dict[str, Any]] = []
    rest = list(rows)
    while rest and len(chosen) < count:
        best = min(rest, key=lambda row: seen[row["category"]])
        rest.remove(best)
        seen[best["category"]] += 1
        chosen.append(best)
    return chosen


def _with_shapes(file: pq.ParquetFile, group: int, rows: list[dict[str, Any]], info: Any) -> list[dict[str, Any]]:
    from g3pt.data.reading import column_values
    from g3pt.data.records import decode_solid

    if not rows:
        return []
    column = "solid" if info.config.keep_solid else "surface"
    values = column_values(file.read_row_group(group, columns=[column], use_threads=False)[column].combine_chunks())
    made = []
    for row in rows:
        value = values[row["place"]]
        shape = mesh_object(*decode_solid(value), "data") if column == "solid" else cloud_object(value, "data")
        made.append({**row, "shape": shape})
    return made


def spread(items: Any, count: int) -> list[Any]:
    """At most `count` evenly spaced items, including the first and the last."""
    items = list(items)
    if len(items) <= count:
        return items
    return [items[round(k * (len(items) - 1) / max(count - 1, 1))] for k in range(count)]
