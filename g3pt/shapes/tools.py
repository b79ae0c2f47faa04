"""Tools: hammer, axe. The handle stands along y, the head at the top, x is the head's length.

Ours: all of it. Parts are at least about 0.08 of the longest extent thick.
"""

from types import SimpleNamespace

import numpy as np

from g3pt.shapes.family import By, Family
from g3pt.shapes.primitives import Part, ball, block, loft, tube


def _hammer(a: SimpleNamespace) -> list[Part]:
    top = a.extent + a.cross
    middle = a.extent + a.cross / 2
    left, right = -a.head * (0.5 + a.offset), a.head * (0.5 - a.offset)
    half = a.cross / 2
    parts = [tube([(0, 0, 0), (0, middle, 0)], [a.grip * a.flare, a.grip], 16)]
    if a.kind == "round":
        return [*parts, tube([(left, middle, 0), (right, middle, 0)], half, 20)]
    if a.kind == "block":
        return [*parts, block((left, a.extent, -half), (right, top, half))]
    square = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    rings = [
        np.insert(square * scale + (middle, 0), 0, x, axis=1)
        for x, scale in ((left, (1, 1)), (a.head * 0.08, (1, 1)), (right, (0.25, 1)))
    ]
    return [*parts, loft(rings)]


HAMMER = Family(
    name="hammer",
    slots={
        "length": ("long", "short"),
        "size": ("big", "small"),
        "kind": ("block", "round", "wedge"),
        "handle": ("thick", "thin"),
    },
    ranges={
        "extent": By("length", {"long": (1.55, 1.9), "short": (0.8, 0.95)}),
        "head": By("size", {"big": (0.95, 1.15), "small": (0.55, 0.66)}),
        "cross": (0.4, 0.46),
        "grip": By("handle", {"thick": (0.15, 0.18), "thin": (0.08, 0.09)}),
        "flare": (1.0, 1.1),
        "offset": (-0.15, 0.15),
    },
    template="a {length} hammer with a {size} {kind} head and a {handle} handle",
    build=_hammer,
)


def _axe(a: SimpleNamespace) -> list[Part]:
    top = a.extent
    parts = [tube([(0, 0, 0), (0, top, 0)], a.grip, 16)]
    if a.end == "a knob":
        parts.append(ball((0, a.knob * 0.8, 0), (a.knob, a.knob, a.knob)))
    centre = top - a.blade * a.place - a.drop
    heights = (a.neck / 2, a.neck / 2 + (a.blade / 2 - a.neck / 2) * 0.55, a.blade / 2)
    for side in (-1, 1) if a.count == "a double" else (1,):
        rings = []
        for x, half, thick in zip((0.0, a.reach * 0.55, a.reach), heights, (0.12, 0.1, 0.075), strict=True):
            rings.append(
                np.array(
                    [
                        (side * x, centre - half, -thick),
                        (side * x, centre + half, -thick),
                        (side * x, centre + half, thick),
                        (side * x, centre - half, thick),
                    ]
                )
            )
        parts.append(loft(rings))
        if a.edge == "curved":
            angles = np.linspace(-np.pi / 2, np.pi / 2, 11)
            outline = [(side * (a.reach - 0.01 + a.bow * np.cos(t)), centre + a.blade / 2 * np.sin(t)) for t in angles]
            parts.append(loft([np.insert(np.array(outline), 2, z, axis=1) for z in (-0.075, 0.075)]))
    if a.count == "a single":
        parts.append(block((-a.grip - 0.1, centre - a.neck / 2, -0.12), (0, centre + a.neck / 2, 0.12)))
    return parts


AXE = Family(
    name="axe",
    slots={
        "length": ("long", "short"),
        "count": ("a single", "a double"),
        "width": ("wide", "narrow"),
        "edge": ("curved", "straight"),
        "end": ("a knob", "a plain end"),
    },
    ranges={
        "extent": By("length", {"long": (1.8, 2.0), "short": (1.15, 1.3)}),
        "grip": (0.08, 0.11),
        "reach": (0.4, 0.68),
        "neck": (0.18, 0.34),
        "bow": (0.13, 0.28),
        "knob": (0.16, 0.19),
        "drop": By("length", {"long": (0.0, 0.45), "short": (0.0, 0.14)}),
        "blade": By("width", {"wide": (0.66, 0.78), "narrow": (0.34, 0.4)}),
        "place": (0.5, 0.56),
    },
    template="a {length} axe with {count} {width} {edge} blade and {end}",
    build=_axe,
)
