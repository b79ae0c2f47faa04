"""A study beside another one, such as of another tokenizer, from its comparison.json."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from pipelines.report.html import Page, columns, paragraph, table, text
from pipelines.report.plots import Series, plot
from pipelines.report.study_figures import NATS
from pipelines.report.values import Source, read_json


def comparison(folder: Path, page: Page) -> Markup:
    """The study beside another one, as `python -m g3pt.scaling compare` wrote it to comparison.json."""
    if not (folder / "comparison.json").is_file():
        return Markup("")
    found = read_json(folder / "comparison.json", page.root)
    rows = [_difference(found.at("differences", k)) for k in range(len(found.get("differences")))]
    curves = [
        Series(
            label=found.get(name, "source"),
            x=[row["flops"] for row in found.get("frontier")],
            y=[row[name] for row in found.get("frontier")],
            colour=k,
        )
        for k, name in enumerate(("first", "second"))
    ]
    names = found.get("first", "source"), found.get("second", "source"), found.get("formula")
    said = Markup("Compared: {} and {}, both with L = {}. {} {}").format(*names, _multiplier(found), _objects(found))
    return paragraph(said, "soft") + columns(
        plot("Loss above E at the best size", curves, x_label="operations", y_label=NATS, log=True),
        table(("exponent", "first", "second", "difference", "95 % interval", ""), rows, "Two studies compared"),
    )


def _difference(one: Source) -> tuple[Markup | str, ...]:
    interval = one.interval("interval_95", spec="+.4f")
    numbers = [
        one.number(name, spec=spec) for name, spec in (("first", ".4f"), ("second", ".4f"), ("difference", "+.4f"))
    ]
    return text(one.get("name")), *numbers, interval, "" if one.get("seen") else "not seen"


def _multiplier(found: Source) -> Markup:
    at = found.at("multiplier")
    if not at.value:
        return Markup("")
    low, high = (at.number("interval_95", k, spec=".3g") if at.get("interval_95", k) else "infinity" for k in (0, 1))
    words = (
        "For the loss above E that the first has with {} operations the second needs {} times as many (95 %: {} to {})."
    )
    return Markup(words).format(at.number("flops", spec=".3g"), at.number("value", spec=".3g"), low, high)


def _objects(found: Source) -> Markup:
    at = found.at("objects")
    if not at.value:
        return Markup("Intervals are about the test objects of the studies.")
    words = "Intervals include the choice of test objects; {} are in both studies and paired."
    return Markup(words).format(at.number("both", spec=",d"))
