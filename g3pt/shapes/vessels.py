"""Vessels: mug, vase, teapot. y up, open at the top where a real one is; walls at least about 0.08
of the longest extent.

Ours: all of it.
"""

from types import SimpleNamespace

import numpy as np

from g3pt.shapes.family import By, Family
from g3pt.shapes.primitives import Part, ball, box, lathe, tube


def _handle(kind: str, side: int, x: float, middle: float, reach: float, height: float, radius: float) -> list[Part]:
    """A handle on side +1 or -1 that leaves the wall at x, `reach` deep and `height` high (centre line)."""
    if kind == "round":
        angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
        arc = [(side * (x + reach * np.cos(t)), middle + height / 2 * np.sin(t), 0.0) for t in angles]
        low, high = (side * (x - 0.1), arc[0][1], 0.0), (side * (x - 0.1), arc[-1][1], 0.0)
        return [tube([low, *arc, high], radius, 12)]
    near, far, low, high = x - 0.1, x + reach, middle - height / 2, middle + height / 2
    spans = (((near, far), (low, low)), ((far, far), (low, high)), ((near, far), (high, high)))
    return [
        box((side * (x0 + x1) / 2, (y0 + y1) / 2, 0.0), (x1 - x0 + 2 * radius, y1 - y0 + 2 * radius, 2 * radius))
        for (x0, x1), (y0, y1) in spans
    ]


def _mug(a: SimpleNamespace) -> list[Part]:
    low, high = {"straight": (1.0, 1.0), "tapered": (1.0, a.narrow), "flared": (a.narrow, 1.0)}[a.profile]
    bottom, top = low * a.radius, high * a.radius
    inside = [(top - a.wall, a.height), (bottom + (top - bottom) * a.floor / a.height - a.wall, a.floor)]
    parts = [lathe([(bottom, 0.0), (top, a.height), *inside])]
    middle, height = a.height * 0.5, a.height * a.handle_share
    wall = (bottom + top) / 2
    for side in (-1, 1) if a.count == "a double" else (1,):
        parts += _handle(a.handle, side, wall - 0.04, middle, a.reach, height, a.grip)
    return parts


MUG = Family(
    name="mug",
    slots={
        "size": ("tall", "short"),
        "profile": ("straight", "tapered", "flared"),
        "count": ("a single", "a double"),
        "handle": ("round", "square"),
    },
    ranges={
        "height": By("size", {"tall": (1.25, 1.5), "short": (0.68, 0.8)}),
        "radius": (0.46, 0.52),
        "narrow": (0.62, 0.74),
        "wall": (0.14, 0.18),
        "floor": (0.16, 0.3),
        "handle_share": (0.5, 0.62),
        "reach": (0.3, 0.4),
        "grip": (0.075, 0.095),
    },
    template="a {size} {profile} mug with {count} {handle} handle",
    build=_mug,
)


def _vase(a: SimpleNamespace) -> list[Part]:
    neck_low = a.height * (1 - a.neck_share)
    steps = np.linspace(0.0, 1.0, 9)
    foot = a.foot * a.belly
    if a.body == "round":
        outer = [
            (
                foot + (a.belly - foot) * np.sin(np.pi * t / 1.25) ** 0.8
                if t < 0.62
                else a.neck + (a.belly - a.neck) * np.cos(np.pi / 2 * (t - 0.62) / 0.38),
                t * neck_low,
            )
            for t in steps
        ]
    elif a.body == "conical":
        outer = [(a.belly, 0.0), (a.belly, neck_low * 0.1), (a.neck, neck_low)]
    else:
        outer = [(a.belly * 0.9, 0.0), (a.belly * 0.9, neck_low * 0.88), (a.neck, neck_low)]
    outer = [*outer, (a.neck, a.height)]
    if a.mouth == "wide":  # a narrow neck's hole would be thinner than a small model can learn
        hole = a.neck - 0.13
        outer += [(hole, a.height), (hole, a.height * (1 - a.depth))]
    return [lathe(outer, 4 if a.section == "square" else 24)]


VASE = Family(
    name="vase",
    slots={
        "size": ("tall", "short"),
        "section": ("round", "square"),
        "body": ("round", "conical", "straight"),
        "mouth": ("wide", "narrow"),
    },
    ranges={
        "height": By("size", {"tall": (1.75, 2.0), "short": (0.95, 1.1)}),
        "belly": (0.5, 0.56),
        "neck": By("mouth", {"wide": (0.33, 0.37), "narrow": (0.17, 0.2)}),
        "neck_share": (0.18, 0.36),
        "foot": (0.55, 0.8),
        "depth": (0.2, 0.6),
    },
    template="a {size} {section} vase with a {body} body and a {mouth} neck",
    build=_vase,
)


def _teapot(a: SimpleNamespace) -> list[Part]:
    steps = np.linspace(0.0, np.pi, 11)
    if a.body == "round":
        parts = [
            lathe(
                [
                    (
                        max(a.radius * np.sin(t) ** (0.6 + 0.3 * a.waist), a.radius * 0.35),
                        a.height * (1 - np.cos(t)) / 2,
                    )
                    for t in steps
                ]
            )
        ]
    else:
        parts = [
            lathe(
                [
                    (a.radius, 0.0),
                    (a.radius * (0.42 + 0.18 * a.waist if a.body == "conical" else 0.85 + 0.15 * a.waist), a.height),
                ]
            )
        ]
    parts.append(ball((0, a.height + a.knob * 0.6, 0), (a.knob, a.knob, a.knob)))
    parts.append(lathe([(a.knob * 0.7, a.height - 0.12), (a.knob * 0.7, a.height + a.knob * 0.5)]))
    start, end = a.radius * 0.6, a.radius + a.reach
    parts.append(tube([(start, a.height * a.root, 0), (end, a.height * a.rise, 0)], [a.pipe * 1.35, a.pipe], 14))
    if a.handle == "side":
        parts += _handle(
            "round", -1, a.radius * 0.72, a.height * 0.5, a.radius * 0.28 + a.grip_reach, a.height * 0.56, 0.085
        )
    else:
        arch = a.radius * 0.6
        angles = np.linspace(0, np.pi, 13)
        top = a.height * 0.8
        path = [(arch * np.cos(t), top + (a.grip_reach + 0.3 + a.height * 0.2) * np.sin(t), 0.0) for t in angles]
        parts.append(tube(path, 0.085, 12))
    return parts


TEAPOT = Family(
    name="teapot",
    slots={
        "size": ("tall", "low"),
        "body": ("round", "conical", "straight"),
        "spout": ("long", "short"),
        "handle": ("side", "top"),
    },
    ranges={
        "height": By("size", {"tall": (1.0, 1.2), "low": (0.55, 0.65)}),
        "radius": (0.46, 0.54),
        "reach": By("spout", {"long": (0.48, 0.62), "short": (0.12, 0.17)}),
        "rise": (0.55, 1.15),
        "root": (0.2, 0.42),
        "waist": (0.0, 1.0),
        "pipe": (0.085, 0.115),
        "knob": (0.11, 0.15),
        "grip_reach": (0.2, 0.4),
    },
    template="a {size} {body} teapot with a {spout} spout and a {handle} handle",
    build=_teapot,
)
