"""Tables and plots of a generator's evaluation, each with its part of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pipelines.report.html import folded, join, paragraph, side_by_side, table, text
from pipelines.report.plots import Series, plot
from pipelines.report.values import Source

NOTHING = Markup("")
Row = tuple[Markup | str, ...]


def figures(source: Source) -> Markup:
    """All tables and plots by importance: match with the prompt, validity, novelty, variety, guidance."""
    metrics = source.at("metrics")
    return join(
        [
            side_by_side(
                told(source, families(metrics), "family_accuracy", "chance"),
                told(source, attributes(metrics), "attributes", "attribute_chance", "rebuilt", "solid"),
            ),
            each_attribute(metrics),
            side_by_side(
                told(source, validity(metrics), "validity"), told(source, distances(metrics), "chamfer", "copies")
            ),
            side_by_side(
                told(
                    source,
                    sets(metrics),
                    "sets",
                    "sets_points",
                    "sets_chamfer",
                    "sets_cov",
                    "sets_mmd",
                    "sets_one_nna",
                    "sets_intervals",
                ),
                told(source, seconds(source), "seconds_per_object"),
            ),
            told(source, guidance(metrics), "guidance"),
        ]
    )


def told(source: Source, figure: Markup, *names: str) -> Markup:
    """A figure with the protocol of its numbers; empty without a figure."""
    if not figure:
        return NOTHING
    words = [str(source.get("protocol", name)) for name in names if source.get("protocol", name)]
    how = folded("How", join([paragraph(line, "soft") for line in words])) if words else NOTHING
    return Markup("<div>{}{}</div>").format(figure, how)


def shares(metrics: Source, parts: Sequence[tuple[str, str, str | None, str]]) -> list[Row]:
    """Rows for those (label, names of share, chance and count) that the metrics contain."""
    return [
        (
            label,
            metrics.number(name),
            metrics.interval(f"{name}_interval_95"),
            metrics.number(chance) if chance else NOTHING,
            metrics.number(count, spec=",d"),
        )
        for label, name, chance, count in parts
        if metrics.get(name) is not None
    ]


def families(metrics: Source) -> Markup:
    """Table: shares of samples of the prompted family."""
    parts = [
        (label, f"{prefix}family_accuracy{suffix}", f"{prefix}family_chance{suffix}", f"{prefix}num_labelled{suffix}")
        for label, prefix, suffix in (
            ("All texts", "", ""),
            ("Seen in training", "", "_seen"),
            ("Never trained on", "", "_unseen"),
            ("A held-out picture, no text", "image_", ""),
        )
    ]
    rows = shares(
        metrics, [*parts, ("Held-out objects (a ceiling)", "held_out_nearest_family_accuracy", None, "num_held_out")]
    )
    return _table(
        ("prompts", "share", "95 % interval", "chance", "samples"),
        rows,
        "Samples whose nearest training object is of the prompted family",
    )


def attributes(metrics: Source) -> Markup:
    """Table: shares of the prompt's attributes that the mesh shows."""
    parts = [
        (label, f"{prefix}attribute_agreement{suffix}", f"{prefix}attribute_chance{suffix}",
         f"{prefix}num_with_attributes{suffix}")
        for label, prefix, suffix in (
            ("All texts", "", ""), ("Seen in training", "", "_seen"), ("Never trained on", "", "_unseen"),
            ("A held-out picture, no text", "image_", ""),
            ("Held-out objects through the tokenizer", "rebuilt_", ""), ("Held-out objects as they are", "solid_", ""),
        )
    ]  # fmt: skip
    rows = shares(
        metrics, [*parts, ("All texts: every attribute right", "all_attributes", None, "num_with_attributes")]
    )
    return _table(
        ("prompts", "share", "95 % interval", "chance", "objects"),
        rows,
        "Attributes of the prompt that are measured on the mesh",
    )


def each_attribute(metrics: Source) -> Markup:
    """Table: the same per attribute."""
    found = metrics.at("by_attribute")
    rows = [
        (
            text(name),
            found.number(name, "agreement"),
            found.interval(name, "agreement_interval_95"),
            found.number(name, "chance"),
            found.number(name, "num", spec=",d"),
        )
        for name in (found.value or {})
    ]
    whole = _table(
        ("attribute", "share", "95 % interval", "chance", "samples"),
        rows,
        "Each attribute alone, over all families that have it",
    )
    return folded("Each attribute alone", whole) if rows else NOTHING


def validity(metrics: Source) -> Markup:
    """Table: shares of samples that are whole objects."""
    parts = (
        ("With a surface", "mesh_share"),
        ("Watertight", "watertight_share"),
        ("In one body", "one_body_share"),
        ("Watertight and in one body", "valid_share"),
        ("The same, from pictures", "image_valid_share"),
    )
    rows: list[Row] = [
        (label, metrics.number(name), metrics.interval(f"{name}_interval_95"))
        for label, name in parts
        if metrics.get(name) is not None
    ]
    if not rows:
        return NOTHING
    if metrics.get("num_faces") is not None:
        rows.append(
            (
                "Faces, mean",
                metrics.number("num_faces", spec=",.0f"),
                metrics.interval("num_faces_interval_95", spec=",.0f"),
            )
        )
    statuses = metrics.at("statuses")
    rows += [
        (Markup("Status {}").format(text(name)), statuses.number(name, spec=",d"), NOTHING)
        for name in (statuses.value or {})
        if name != "ok"
    ]
    return _table(("samples of texts", "share", "95 % interval"), rows, "Whole objects")


def distances(metrics: Source) -> Markup:
    """Table: distances to the nearest training objects, and shares of copies."""
    rows: list[Row] = [
        (label, metrics.number(name, spec=".4f"), metrics.interval(f"{name}_interval_95", spec=".4f"))
        for label, name in (
            ("Samples, median", "nearest_chamfer_median"),
            ("Held-out objects, median", "held_out_nearest_chamfer_median"),
            ("An exact copy would have", "nearest_chamfer_of_a_copy"),
        )
    ]
    rows += [
        (label, metrics.number(name), metrics.interval(f"{name}_interval_95"))
        for label, name in (
            ("Samples that copy one, share", "copy_share"),
            ("Held-out objects as near, share", "held_out_copy_share"),
        )
        if metrics.get(name) is not None
    ]
    both = Markup("{} / {}").format(
        metrics.number("num_samples", spec=",d"), metrics.number("num_without_mesh", spec=",d")
    )
    return table(
        ("", "value", "95 % interval"),
        [*rows, ("Samples / without a mesh", both, NOTHING)],
        "Chamfer distance to the nearest training object",
    )


def sets(metrics: Source) -> Markup:
    """Table: samples and held-out objects compared as sets."""
    rows = [
        (
            label,
            metrics.number(name, spec=spec),
            metrics.interval(f"{name}_interval_95", spec=spec),
            metrics.number(f"train_{name}", spec=spec),
            best,
        )
        for label, name, spec, best in (
            ("Coverage (COV)", "cov", ".3f", "1"),
            ("1-NN accuracy (1-NNA)", "one_nna", ".3f", "0.5"),
            ("Minimum matching distance (MMD)", "mmd", ".5f", "0"),
        )
        if metrics.get(name) is not None
    ]
    if rows:
        rows.append(("Objects in either set", metrics.number("num_compared", spec=",d"), NOTHING, NOTHING, ""))
    return _table(
        ("", "samples", "95 % interval", "training objects", "best"), rows, "Samples and held-out objects as sets"
    )


def seconds(source: Source) -> Markup:
    """Table: seconds per sample."""
    part = source.at("seconds_per_object")
    rows = [
        (label, part.number(name, spec=".3f", unit="\u00a0s"), part.interval(f"{name}_interval_95", spec=".3f"))
        for label, name in (("Codes", "codes"), ("Mesh", "mesh"), ("Checks", "checks"))
        if part.get(name) is not None
    ]
    return _table(("stage", "mean", "95 % interval"), rows, "Wall seconds per sample, on one worker")


def guidance(metrics: Source) -> Markup:
    """Plots and table: shares and distance by strength of guidance."""
    points = [metrics.at("guidance", k) for k in range(len(metrics.get("guidance", default=[])))]
    if not points:
        return NOTHING
    plots = [
        plot(
            title,
            [line for k, schedule in enumerate(("ramp", "constant")) for line in _lines(points, schedule, name, k)],
            x_label="strength of guidance",
            y_label=label,
        )
        for title, name, label in (
            ("Guidance: samples of the prompted family", "family_accuracy", "share"),
            ("Guidance: attributes of the prompt on the mesh", "attribute_agreement", "share"),
            ("Guidance: distance to the nearest training object", "nearest_chamfer_median", "Chamfer, median"),
        )
    ]
    rows = [
        (point.number("cfg", spec="g"), text(point.get("cfg_schedule") if point.get("cfg") else "none"),
         point.number("family_accuracy"), point.interval("family_accuracy_interval_95"),
         point.number("attribute_agreement"), point.interval("attribute_agreement_interval_95"),
         point.number("nearest_chamfer_median", spec=".4f"), point.number("valid_share"),
         point.number("num_samples", spec=",d"))
        for point in points
    ]  # fmt: skip
    heads = (
        "strength",
        "schedule",
        "family",
        "95 % interval",
        "attributes",
        "95 % interval",
        "Chamfer",
        "whole",
        "samples",
    )
    return join([side_by_side(*[part for part in plots if part]), _table(heads, rows, "Guidance")])


def _lines(points: Sequence[Source], schedule: str, name: str, colour: int) -> list[Series]:
    """The band and the line of one schedule; both begin at strength 0."""
    mine = [p for p in points if (p.get("cfg_schedule") == schedule or not p.get("cfg")) and p.get(name) is not None]
    x, y = [p.get("cfg") for p in mine], [p.get(name) for p in mine]
    low, high = ([p.get(f"{name}_interval_95", k) for p in mine] for k in (0, 1))
    return [
        Series(label=f"{schedule}, 95 % interval", x=x, y=low, high=high, colour=colour),
        Series(label=schedule, x=x, y=y, style="both", colour=colour),
    ]


def _table(heads: Sequence[str], rows: Sequence[Row], caption: str) -> Markup:
    return table(heads, rows, caption) if rows else NOTHING
