"""The part of a study's section about its law in N and D: losses by samples with the fitted curves, parameters, rival
forms, what moves the law, and the forecast beside what was measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from g3pt.scaling.fit import Fit
from g3pt.scaling.forms import FORMS, saturating_at
from pipelines.report.html import columns, folded, paragraph, table, text, warning
from pipelines.report.plots import COLOURS, Series, plot
from pipelines.report.study_figures import iso_flops, residuals, scales
from pipelines.report.values import Source


def surface(points: Source, fit: Source) -> list[Markup]:
    """The plot and tables; nothing for a study without such a law."""
    found = fit.at("surface")
    if not found.value:
        return []
    law = found.at("law")
    shown = [
        paragraph(
            Markup("Law in parameters N and samples D: L = {}, the form that predicts runs left out best.").format(
                law.get("formula")
            ),
            "soft",
        )
    ]
    if found.get("misses"):
        lack = found.at("lack_of_fit")
        shown.append(
            warning(
                Markup("The law misses: its residuals exceed the spread of seeds (F {}, p {}).").format(
                    lack.number("F", spec=".3g"), lack.number("p", spec=".2g")
                )
            )
        )
    fitted = law_of(found)
    shown += [columns(_by_samples(points, fitted), _parameters(law)), *_forecast(fit)]
    shown += [columns(_forms(found), residuals(points, fitted)), iso_flops(points, found, fitted), scales(fit)]
    return [*shown, folded("What moves the law", _sensitivity(found))]


def law_of(found: Source) -> Fit:
    """The law of a fit.json's `surface`; call it with N and D."""
    theta, name, ceiling = found.get("law", "theta"), found.get("law", "form"), found.get("ceiling", default=None)
    form = saturating_at(ceiling) if ceiling and name == "saturating" else FORMS[name]
    empty = np.zeros(0)
    values = np.array([theta[name] for name in form.parameters])
    return Fit(form=form, theta_p=values, residual_n=empty, jacobian_np=empty, objective=0.0, delta=None)


def _by_samples(points: Source, law: Fit) -> Markup:
    """Test losses over samples, one colour per size, with the law as lines."""
    series = list[Series]()
    rows: list[dict[str, Any]] = points.value
    sizes = sorted({(row["params_no_embed"], row["size"]) for row in rows})
    line = np.geomspace(min(row["samples"] for row in rows) / 1.2, max(row["samples"] for row in rows) * 1.2, 40)
    for k, (params, size) in enumerate(sizes):
        mine = [row for row in rows if row["size"] == size]
        colour = k % len(COLOURS)
        series.append(
            Series(
                label=f"{size}",
                x=[row["samples"] for row in mine],
                y=[row["test_ce"] for row in mine],
                style="points",
                colour=colour,
            )
        )
        series.append(Series(label="", x=line.tolist(), y=law(params, line).tolist(), colour=colour))
    return plot(
        "Test cross-entropy against samples; lines: the law",
        series,
        x_label="samples D",
        y_label="nats per token",
        log=True,
    )


def _parameters(law: Source) -> Markup:
    bounded = law.get("at_bound", default=[])
    rows = [
        (
            text(name),
            law.number("parameters", name, spec=".4g"),
            "at its bound: not determined" if name in bounded else law.interval("interval_95", name, spec=".4g"),
        )
        for name in law.get("parameters")
    ]
    return table(("parameter", "value", "95 % interval"), rows, "The law")


def _forms(found: Source) -> Markup:
    """Root mean square error of each form in predicting what was left out of its fit, in percent of the loss."""
    rungs = [one["name"] for one in next(iter(found.get("forms").values()))["left_out"]]
    rows = []
    for name, form in found.get("forms").items():
        by_rung = {one["name"]: k for k, one in enumerate(form["left_out"])}
        at = found.at("forms", name)
        cells = [at.number("left_out", by_rung[r], "error", spec=".2%") if r in by_rung else text("") for r in rungs]
        rows.append((text(name), at.number("score", spec=".2%") if form["score"] is not None else text(""), *cells))
    return table(("form", "error, left-out runs", *rungs), rows, "Forms of the law, by what they predict")


def _forecast(fit: Source) -> list[Markup]:
    rungs = fit.get("forecast", default=[])
    rows = []
    for k, rung in enumerate(rungs):
        at = fit.at("forecast", k)
        measured = "measured" in rung
        rows.append(
            (
                text(str(rung.get("size", ""))),
                at.number("samples", spec=",.0f"),
                at.number("loss"),
                at.interval("interval_95"),
                at.number("measured") if measured else "not yet",
                at.number("miss", spec="+.2%") if measured else "",
                ("inside" if rung["inside"] else "outside") if measured else "",
                text(str(rung.get("beyond", ""))),
            )
        )
    heads = ("size", "samples", "forecast", "95 % for a new run", "measured", "miss", "interval", "extrapolation")
    return [table(heads, rows, "Forecast, written before these runs started")] if rows else []


def _sensitivity(found: Source) -> Markup:
    listed = found.get("sensitivity")
    names = [name for name in ("E", "A", "alpha", "B", "beta", "H") if name in listed[0]]
    rows = []
    for k, row in enumerate(listed):
        at = found.at("sensitivity", k)
        cells = [at.number(name, spec=".4g") if name in row else text("") for name in names]
        rows.append(
            (
                text(row["variant"]),
                at.number("num_points", spec="d"),
                *(cells if "error" not in row else [text(row["error"])]),
            )
        )
    return table(("variant", "points", *names), rows, "The law by how it was fitted")
