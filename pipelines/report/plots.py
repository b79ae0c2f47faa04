"""Line and point plots as inline SVG: a few KB each, readable on a phone, with a title for screen readers.

How: one viewBox of about a phone's width, so that text stays legible on narrow screens; the colours of Okabe and Ito,
which colour-blind readers can distinguish; lines are thinned to MAX_POINTS. Scales are linear or logarithmic. Points
may have the source of their value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from pipelines.report.html import join

COLOURS = (
    "#2f6db5", "#d55e00", "#3a9d6e", "#b0609c", "#8c6d1f", "#56b4e9", "#444b57",  # Okabe and Ito's
    "#c23b4e", "#6a51a3", "#7a9a01", "#00808a", "#a08080",  # for more series, harder to tell apart
)  # fmt: skip
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 270, 54, 10, 10, 38
MAX_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, row of points or band of a plot."""

    label: str  # "": not in the legend
    x: Sequence[float]
    y: Sequence[float]
    high: Sequence[float] | None = None  # if given, the series is a band from y to high
    style: Literal["line", "dashed", "points", "both"] = "line"
    colour: int = 0
    values: Sequence[Markup] = field(default_factory=tuple)  # numbers shown at the points


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values."""
        if self.log and self.high / self.low >= 8:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) <= 3 else (1,)
            found = [s * 10.0**p for p in powers for s in steps]
        else:
            rough = (self.high - self.low) / count
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * s for s in (1, 2, 2.5, 5, 10) if unit * s >= rough)
            found = [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in found if self.low <= value <= self.high * (1 + 1e-12)]


def plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """A figure with title, SVG and legend; empty if no series has a finite point."""
    series = [kept for kept in (_finite(s, log, log_x or log) for s in series) if len(kept.x)]
    if not series:
        return Markup("")
    x_axis = _axis(
        [v for s in series for v in s.x],
        LEFT,
        WIDTH - RIGHT,
        log or log_x,
        margin=0.04 if any(s.style in ("points", "both") for s in series) else 0.0,
    )
    y_axis = _axis(
        [v for s in series for v in (*s.y, *(s.high or ()))], HEIGHT - BOTTOM, TOP, log, margin=0.06, fixed=y_range
    )
    parts = [_grid(x_axis, y_axis, x_label, y_label), *(_draw(s, x_axis, y_axis) for s in series)]
    spoken = f"{title}. {y_label} against {x_label}. " + "; ".join(
        f"{s.label}: from {s.y[0]:.4g} to {s.y[-1]:.4g}" for s in series if s.label
    )
    picture = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" font-family="inherit">{}</svg>').format(
        WIDTH, HEIGHT, spoken, join(parts)
    )
    return Markup('<figure class="plot"><p class="title">{}</p>{}<ul class="legend">{}</ul></figure>').format(
        title, picture, _legend(series)
    )


def _finite(s: Series, log_y: bool, log_x: bool) -> Series:
    """The series without points that cannot be drawn, thinned evenly; the last point is kept."""

    def drawable(value: float, log: bool) -> bool:
        return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not log)

    keep = [k for k, (x, y) in enumerate(zip(s.x, s.y, strict=True)) if drawable(x, log_x) and drawable(y, log_y)]
    if len(keep) > MAX_POINTS:
        keep = [keep[round(k * (len(keep) - 1) / (MAX_POINTS - 1))] for k in range(MAX_POINTS)]
    values = [s.values[k] for k in keep] if s.values else ()
    high = [s.high[k] for k in keep] if s.high else None
    return Series(
        label=s.label,
        x=[s.x[k] for k in keep],
        y=[s.y[k] for k in keep],
        high=high,
        style=s.style,
        colour=s.colour,
        values=values,
    )


def _axis(
    values: Sequence[float],
    start: float,
    end: float,
    log: bool,
    margin: float,
    fixed: tuple[float, float] | None = None,
) -> Axis:
    low, high = fixed or (min(values), max(values))
    if log:
        room = (high / low) ** margin if high > low else 1.2
        return Axis(low / room, high * room, start, end, True)
    room = (high - low) * margin if high > low else max(abs(high), 1.0) * 0.5
    return Axis(low, high, start, end, False) if fixed else Axis(low - room, high + room, start, end, False)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> Markup:
    lines = [
        Markup(
            '<line x1="{}" x2="{}" y1="{y}" y2="{y}" stroke="#e6e9ee"/><text x="{}" y="{}" text-anchor="end" '
            'font-size="11.5" fill="#5d6675">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, LEFT - 6, f"{y_axis(v) + 4:.1f}", short(v), y=f"{y_axis(v):.1f}")
        for v in y_axis.ticks(5)
    ]
    lines += [
        Markup(
            '<line x1="{x}" x2="{x}" y1="{}" y2="{}" stroke="#9aa2ad"/><text x="{x}" y="{}" text-anchor="middle" '
            'font-size="11.5" fill="#5d6675">{}</text>'
        ).format(HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4, HEIGHT - BOTTOM + 16, short(v), x=f"{x_axis(v):.1f}")
        for v in x_axis.ticks(5)
    ]
    lines.append(
        Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}" stroke="#9aa2ad"/>').format(
            LEFT, WIDTH - RIGHT, y=HEIGHT - BOTTOM
        )
    )
    lines.append(
        Markup('<text x="{}" y="{}" text-anchor="middle" font-size="12" fill="#1d2430">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label
        )
    )
    lines.append(
        Markup(
            '<text transform="translate(11 {}) rotate(-90)" text-anchor="middle" font-size="12" '
            'fill="#1d2430">{}</text>'
        ).format((TOP + HEIGHT - BOTTOM) / 2, y_label)
    )
    return join(lines)


def _draw(s: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    colour = COLOURS[s.colour % len(COLOURS)]
    places = [(f"{x_axis(x):.1f}", f"{y_axis(y):.1f}") for x, y in zip(s.x, s.y, strict=True)]
    path = " ".join(f"{x},{y}" for x, y in places)
    if s.high is not None:
        back = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in reversed(list(zip(s.x, s.high, strict=True))))
        return Markup('<polygon points="{} {}" fill="{}" fill-opacity="0.14"/>').format(path, back, colour)
    parts = []
    if s.style != "points" and len(places) > 1:
        dash = Markup(' stroke-dasharray="5 4"') if s.style == "dashed" else Markup("")
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-linejoin="round"{}/>'
            ).format(path, colour, dash)
        )
    if s.style in ("points", "both") or len(places) == 1:
        parts += [Markup('<circle cx="{}" cy="{}" r="3.6" fill="{}"/>').format(x, y, colour) for x, y in places]
    return join(parts)


def _legend(series: Sequence[Series]) -> Markup:
    items = []
    for s in filter(lambda s: s.label, series):
        colour = COLOURS[s.colour % len(COLOURS)]
        if s.high is not None:
            mark = Markup('<rect width="22" height="10" fill="{}" fill-opacity="0.2"/>').format(colour)
        elif s.style == "points":
            mark = Markup('<circle cx="11" cy="5" r="3.6" fill="{}"/>').format(colour)
        else:
            dash = Markup(' stroke-dasharray="5 4"') if s.style == "dashed" else Markup("")
            mark = Markup('<line x1="0" x2="22" y1="5" y2="5" stroke="{}" stroke-width="2"{}/>').format(colour, dash)
        items.append(Markup('<li><svg viewBox="0 0 22 10" aria-hidden="true">{}</svg>{}</li>').format(mark, s.label))
    return join(items)


def short(value: float) -> str:
    """The label of a tick: 12k for 12000, 1.5M for 1500000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
