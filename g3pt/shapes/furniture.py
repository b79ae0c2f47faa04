"""Furniture: chair, stool, table, bench, sofa, shelf, lamp. The first five have similar proportions on purpose.

Ours: all of it. x is the width, y up, +z the front. Sizes are relative: the final solid is scaled into the box.
Parts are at least about 0.08 of the longest extent thick, so that a small model can learn them.
"""

from types import SimpleNamespace

import numpy as np

from g3pt.shapes.family import By, Family
from g3pt.shapes.primitives import Part, ball, block, box, disc, frustum, lathe, tube

_BASES = ("four legs", "a pedestal", "two panels")


def _corners(width: float, depth: float) -> list[tuple[float, float]]:
    return [(sx * width / 2, sz * depth / 2) for sx in (-1, 1) for sz in (-1, 1)]


def _legs(width: float, depth: float, height: float, thickness: float, splay: float = 0.0) -> list[Part]:
    """Four legs whose outer faces meet the rectangle at the top and stand `splay` further out at the floor."""
    parts = []
    for x, z in _corners(width - thickness, depth - thickness):
        foot = (x + np.sign(x) * splay, 0.0, z + np.sign(z) * splay)
        parts.append(frustum(foot, (thickness, thickness), (x, height, z), (thickness, thickness)))
    return parts


def _base(kind: str, width: float, depth: float, height: float, thickness: float, foot: float) -> list[Part]:
    """Supports of a top: four legs, a pedestal on a round foot (share `foot` of the smaller side)
    or two side panels.
    """
    overlap = height + 0.02
    if kind == "four legs":
        return _legs(width, depth, overlap, thickness)
    if kind == "a pedestal":
        return [
            disc((0, 0, 0), thickness * 0.7, overlap),
            disc((0, 0, 0), foot * min(width, depth) / 2, min(thickness, height * 0.45)),
        ]
    if kind == "two panels":
        return [
            block(
                (s * width / 2 - (thickness if s > 0 else 0), 0, -depth / 2),
                (s * width / 2 + (0 if s > 0 else thickness), overlap, depth / 2),
            )
            for s in (-1, 1)
        ]
    if kind == "a solid base":
        return [box((0, overlap / 2, 0), (width * foot, overlap, depth * foot))]
    raise ValueError(f"unknown base: {kind!r}")


def _chair(a: SimpleNamespace) -> list[Part]:
    seat_low = a.height * a.seat_share
    seat_top = seat_low + a.seat_thickness
    parts = _base(a.base, a.width, a.depth, seat_low, a.leg, a.foot)
    parts.append(block((-a.width / 2, seat_low, -a.depth / 2), (a.width / 2, seat_top, a.depth / 2)))
    rear = -a.depth / 2

    def panel(left: float, right: float, low: float, high: float) -> Part:
        shift_low, shift_high = (a.tilt * (y - seat_low) / (a.height - seat_low) for y in (low, high))
        size = (right - left, a.back_thickness)
        middle = rear + a.back_thickness / 2
        return frustum(
            ((left + right) / 2, low, middle - shift_low), size, ((left + right) / 2, high, middle - shift_high), size
        )

    half = a.width / 2
    if a.back == "a solid back":
        return [*parts, panel(-half, half, seat_low, a.height)]
    post = a.back_thickness
    rail = panel(-half, half, a.height - 0.13, a.height)
    return [*parts, rail, panel(-half, -half + post, seat_low, a.height), panel(half - post, half, seat_low, a.height)]


CHAIR = Family(
    name="chair",
    slots={
        "size": ("tall", "low"),
        "breadth": ("wide", "narrow"),
        "back": ("a solid back", "an open back"),
        "base": _BASES,
    },
    ranges={
        "height": By("size", {"tall": (1.35, 1.6), "low": (0.76, 0.88)}),
        "width": By("breadth", {"wide": (0.92, 1.1), "narrow": (0.46, 0.54)}),
        "depth": (0.58, 0.7),
        "seat_share": (0.3, 0.42),
        "seat_thickness": (0.12, 0.15),
        "back_thickness": (0.12, 0.15),
        "leg": (0.13, 0.18),
        "tilt": (0.0, 0.12),
        "foot": (0.7, 1.0),
    },
    template="a {size} {breadth} chair with {back} and {base}",
    build=_chair,
)


def _stool(a: SimpleNamespace) -> list[Part]:
    half, low = a.width / 2, a.height - a.thickness
    segments = 24 if a.shape == "round" else 4
    seat = lathe([(half * a.taper, low), (half, a.height)], segments)
    if a.base == "a pedestal":
        return [
            seat,
            disc((0, 0, 0), a.leg * 0.75, low + 0.02),
            disc((0, 0, 0), half * 0.9, min(a.leg, low * 0.4), segments),
        ]
    count = 3 if a.base == "three legs" else 4
    turn = np.pi / 2 if count == 3 else np.pi / 4
    reach = (half * a.taper - a.leg / 2) * (1.0 if a.shape == "round" or count == 3 else np.sqrt(2.0))
    parts = [seat]
    for k in range(count):
        x, z = np.cos(turn + k * 2 * np.pi / count), np.sin(turn + k * 2 * np.pi / count)
        out = reach + a.splay
        parts.append(tube([(x * out, 0, z * out), (x * reach, low + 0.02, z * reach)], a.leg / 2, 12))
    return parts


STOOL = Family(
    name="stool",
    slots={
        "size": ("tall", "low"),
        "shape": ("round", "square"),
        "seat": ("a thick seat", "a thin seat"),
        "base": ("three legs", "four legs", "a pedestal"),
    },
    ranges={
        "height": By("size", {"tall": (1.25, 1.6), "low": (0.58, 0.72)}),
        "width": (0.72, 0.9),
        "leg": (0.14, 0.19),
        "splay": (0.0, 0.05),
        "thickness": By("seat", {"a thick seat": (0.28, 0.36), "a thin seat": (0.12, 0.15)}),
        "taper": (0.85, 1.0),
    },
    template="a {size} {shape} stool with {seat} and {base}",
    build=_stool,
)


def _table(a: SimpleNamespace) -> list[Part]:
    low = a.height - a.thickness
    width, depth = a.width, a.width * a.aspect
    if a.shape == "round":
        top = disc((0, low, 0), width / 2, a.thickness, 32)
        width = depth = width * 0.74
        return [top, *_base(a.base, width, depth, low, a.leg, a.foot)]
    top = block((-width / 2, low, -depth / 2), (width / 2, a.height, depth / 2))
    return [top, *_base(a.base, width * a.inset, depth * a.inset, low, a.leg, a.foot)]


TABLE = Family(
    name="table",
    slots={
        "size": ("tall", "low"),
        "shape": ("round", "square", "long"),
        "top": ("a thick top", "a thin top"),
        "base": _BASES,
    },
    ranges={
        "height": By("size", {"tall": (1.1, 1.35), "low": (0.54, 0.62)}),
        "aspect": By("shape", {"round": (1.0, 1.0), "square": (0.92, 1.0), "long": (0.48, 0.56)}),
        "width": By("shape", {"round": (0.95, 1.15), "square": (0.95, 1.15), "long": (1.58, 1.85)}),
        "leg": (0.15, 0.2),
        "inset": (0.78, 1.0),
        "foot": (0.65, 0.95),
        "thickness": By("top", {"a thick top": (0.29, 0.34), "a thin top": (0.13, 0.14)}),
    },
    template="a {size} {shape} table with {top} and {base}",
    build=_table,
)


def _bench(a: SimpleNamespace) -> list[Part]:
    low = a.height - a.thickness
    parts = [block((-a.width / 2, low, -a.depth / 2), (a.width / 2, a.height, a.depth / 2))]
    parts += _base(a.base, a.width * a.inset, a.depth, low, a.leg, 0.85)
    if a.back == "a back":
        parts.append(
            block((-a.width / 2, low, -a.depth / 2), (a.width / 2, a.height + a.back_height, -a.depth / 2 + a.leg))
        )
    return parts


BENCH = Family(
    name="bench",
    slots={
        "length": ("long", "short"),
        "size": ("tall", "low"),
        "back": ("a back", "no back"),
        "base": ("two panels", "four legs", "a solid base"),
    },
    ranges={
        "width": By("length", {"long": (1.9, 2.2), "short": (1.1, 1.25)}),
        "depth": (0.5, 0.64),
        "height": By("size", {"tall": (0.8, 0.98), "low": (0.38, 0.46)}),
        "thickness": (0.17, 0.21),
        "leg": (0.17, 0.22),
        "inset": (0.7, 1.0),
        "back_height": (0.4, 0.65),
    },
    template="a {length} {size} bench with {back} and {base}",
    build=_bench,
)


def _sofa(a: SimpleNamespace) -> list[Part]:
    half, rear = a.width / 2, -a.depth / 2
    parts = [
        block((-half, a.foot, rear), (half, a.seat, a.depth / 2)),
        block((-half, a.foot, rear), (half, a.height, rear + a.back_thickness)),
    ]
    arms = {"two arms": (-1, 1), "one arm": (1,), "no arms": ()}[a.arms]
    for side in arms:
        inner = half - a.arm_width
        left, right = (inner, half) if side > 0 else (-half, -inner)
        parts.append(block((left, a.foot, rear), (right, a.seat + a.arm_height, a.depth / 2)))
    if a.base == "four legs":
        return parts + _legs(a.width, a.depth, a.foot + 0.02, 0.24)
    return [*parts, block((-half, 0, rear), (half, a.foot + 0.02, a.depth / 2))]


SOFA = Family(
    name="sofa",
    slots={
        "breadth": ("wide", "narrow"),
        "size": ("tall", "low"),
        "arms": ("two arms", "one arm", "no arms"),
        "base": ("four legs", "a solid base"),
    },
    ranges={
        "width": By("breadth", {"wide": (1.75, 2.1), "narrow": (1.05, 1.2)}),
        "depth": (0.75, 0.9),
        "height": By("size", {"tall": (1.15, 1.4), "low": (0.64, 0.74)}),
        "seat": (0.42, 0.48),
        "arm_height": (0.15, 0.22),
        "arm_width": (0.2, 0.3),
        "back_thickness": (0.2, 0.3),
        "foot": (0.16, 0.2),
    },
    template="a {breadth} {size} sofa with {arms} and {base}",
    build=_sofa,
)


def _shelf(a: SimpleNamespace) -> list[Part]:
    rows = {"one row": 1, "two rows": 2, "three rows": 3}[a.rows]
    board = a.board * max(a.height, a.width)
    half, deep = a.width / 2, a.depth / 2
    parts = [
        block((-half, 0, -deep), (-half + board, a.height, deep)),
        block((half - board, 0, -deep), (half, a.height, deep)),
    ]
    for k in range(rows + 1):
        low = a.base + (a.height - a.base - board) * (k / rows) ** a.spacing
        parts.append(block((-half, low, -deep), (half, low + board, deep)))
    if a.back == "a closed back":
        parts.append(block((-half, a.base, -deep), (half, a.height, -deep + board)))
    return parts


SHELF = Family(
    name="shelf",
    slots={
        "size": ("tall", "low"),
        "breadth": ("wide", "narrow"),
        "rows": ("one row", "two rows", "three rows"),
        "back": ("a closed back", "no back"),
    },
    ranges={
        "height": By("size", {"tall": (1.75, 2.2), "low": (0.95, 1.1)}),
        "width": By("breadth", {"wide": (1.2, 1.45), "narrow": (0.6, 0.74)}),
        "depth": (0.44, 0.56),
        "board": (0.082, 0.11),
        "base": (0.0, 0.2),
        "spacing": (0.85, 1.3),
    },
    template="a {size} {breadth} shelf with {rows} and {back}",
    build=_shelf,
)


def _lamp(a: SimpleNamespace) -> list[Part]:
    segments = 4 if a.base == "a square base" else 24
    low = a.height - a.shade_height
    parts = [disc((0, 0, 0), a.foot, a.foot_height, segments), disc((0, 0, 0), a.stem, low + a.shade_height / 2)]
    if a.shade == "ball":
        return [*parts, ball((0, low + a.shade_height / 2, 0), (a.radius, a.shade_height / 2, a.radius))]
    top = a.radius * (0.35 if a.shade == "cone" else 1.0)
    return [*parts, lathe([(a.radius, low), (top, a.height)])]


LAMP = Family(
    name="lamp",
    slots={
        "size": ("tall", "short"),
        "breadth": ("wide", "narrow"),
        "shade": ("cone", "drum", "ball"),
        "base": ("a round base", "a square base"),
    },
    ranges={
        "height": By("size", {"tall": (1.55, 1.85), "short": (0.9, 1.04)}),
        "radius": By("breadth", {"wide": (0.43, 0.52), "narrow": (0.24, 0.29)}),
        "shade_height": (0.42, 0.6),
        "foot": (0.28, 0.34),
        "foot_height": (0.15, 0.24),
        "stem": (0.075, 0.12),
    },
    template="a {size} lamp with a {breadth} {shade} shade and {base}",
    build=_lamp,
)
