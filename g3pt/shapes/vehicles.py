"""Vehicles: car, truck, boat, plane. They lie along x, the front at +x, y up.

Ours: all of it. Parts are at least about 0.08 of the longest extent thick.
"""

from types import SimpleNamespace

import numpy as np

from g3pt.shapes.family import By, Family
from g3pt.shapes.primitives import Part, block, frustum, loft, prism, tube, wheel


def _wheels(places: list[float], radius: float, width: float, track: float) -> list[Part]:
    """A pair of wheels at each x, their outer faces `track` apart."""
    return [wheel((x, radius, side * (track - width) / 2), radius, width) for x in places for side in (-1, 1)]


def _car(a: SimpleNamespace) -> list[Part]:
    half, side = a.extent / 2, a.width * 0.43  # the wheels protrude a little from the body
    low = a.wheel
    body = block((-half, low, -side), (half, low + a.body, side))
    place = {"front": 0.22, "middle": 0.0, "rear": -0.22}[a.cabin] * a.extent
    size = a.extent * a.cabin_length
    top = low + a.body
    cabin = frustum(
        (place, top - 0.02, 0),
        (size, 2 * side),
        (place - 0.1 * size * a.slant, top + a.cabin_height, 0),
        (size * (1 - 0.4 * a.slant), a.width * 0.72),
    )
    axle = half - a.wheel * a.overhang
    return [body, cabin, *_wheels([-axle, axle], a.wheel, a.tyre, a.width)]


CAR = Family(
    name="car",
    slots={
        "length": ("long", "short"),
        "size": ("tall", "low"),
        "cabin": ("front", "middle", "rear"),
        "wheels": ("large wheels", "small wheels"),
    },
    ranges={
        "extent": By("length", {"long": (2.15, 2.4), "short": (1.5, 1.65)}),
        "width": (0.88, 1.0),
        "body": (0.28, 0.48),
        "cabin_length": (0.38, 0.46),
        "cabin_height": By("size", {"tall": (0.52, 0.68), "low": (0.24, 0.31)}),
        "wheel": By("wheels", {"large wheels": (0.29, 0.34), "small wheels": (0.16, 0.2)}),
        "tyre": (0.2, 0.28),
        "overhang": (1.0, 1.15),
        "slant": (0.0, 1.0),
    },
    template="a {length} {size} car with a {cabin} cabin and {wheels}",
    build=_car,
)


def _truck(a: SimpleNamespace) -> list[Part]:
    half, side = a.extent / 2, a.width * 0.43
    low = a.wheel
    cab_start = half - a.cab_length
    parts = [
        block((-half, low, -side), (half, low + a.chassis, side)),
        block((cab_start, low, -side), (half, low + a.cab_height, side)),
    ]
    floor, end = low + a.chassis, cab_start - a.gap
    if a.cargo == "box":
        parts.append(block((-half, floor - 0.02, -side), (end, floor + a.cargo_height, side)))
    if a.cargo == "tank":
        radius = min(a.cargo_height, 2 * side) / 2
        parts.append(tube([(-half, floor + radius - 0.05, 0), (end, floor + radius - 0.05, 0)], radius, 24))
    axles = [half - a.wheel * 1.3, -half + a.wheel * 1.3] + ([-half + a.wheel * 3.9] if a.wheels == "six" else [])
    return parts + _wheels(axles, a.wheel, a.tyre, a.width)


TRUCK = Family(
    name="truck",
    slots={
        "length": ("long", "short"),
        "size": ("tall", "low"),
        "cargo": ("box", "flat", "tank"),
        "wheels": ("four", "six"),
    },
    ranges={
        "extent": By("length", {"long": (2.4, 2.75), "short": (1.6, 1.8)}),
        "width": (0.8, 0.95),
        "cab_length": (0.42, 0.7),
        "cab_height": By("size", {"tall": (1.0, 1.2), "low": (0.52, 0.62)}),
        "cargo_height": (0.58, 1.1),
        "gap": (0.0, 0.3),
        "chassis": (0.2, 0.25),
        "wheel": (0.17, 0.2),
        "tyre": (0.22, 0.3),
    },
    template="a {length} {size} {cargo} truck with {wheels} wheels",
    build=_truck,
)


def _boat(a: SimpleNamespace) -> list[Part]:
    half, beam = a.extent / 2, a.beam / 2
    shoulder = half - a.bow_length * a.extent
    tip = 0.06 if a.bow == "pointed" else beam * 0.85
    outline = np.array(
        [
            (-half, -beam * a.stern),
            (shoulder, -beam),
            (half, -tip),
            (half, tip),
            (shoulder, beam),
            (-half, beam * a.stern),
        ]
    )
    rings = [
        np.insert(outline * (share_x, share_z), 1, y, axis=1)
        for share_x, share_z, y in ((0.9, a.keel, 0.0), (1.0, 1.0, a.depth))
    ]
    parts = [loft(rings)]
    if a.deck == "a cabin":
        parts.append(
            block(
                (a.place - a.deck_length / 2, a.depth - 0.02, -beam * 0.7),
                (a.place + a.deck_length / 2, a.depth + a.deck_height, beam * 0.7),
            )
        )
    if a.deck == "a sail":
        top = a.depth + a.deck_height * 2.6
        parts.append(tube([(a.place, a.depth - 0.05, 0), (a.place, top, 0)], 0.1, 12))
        parts.append(
            prism(
                [(a.place, a.depth + 0.2), (a.place, top), (a.place - a.deck_length * 1.3, a.depth + 0.2)],
                "z",
                -0.09,
                0.09,
            )
        )
    return parts


BOAT = Family(
    name="boat",
    slots={
        "length": ("long", "short"),
        "hull": ("deep", "shallow"),
        "bow": ("pointed", "blunt"),
        "deck": ("a sail", "a cabin", "a flat deck"),
    },
    ranges={
        "extent": By("length", {"long": (2.0, 2.4), "short": (1.25, 1.45)}),
        "beam": (0.66, 0.8),
        "depth": By("hull", {"deep": (0.52, 0.65), "shallow": (0.22, 0.3)}),
        "keel": (0.45, 0.85),
        "bow_length": (0.25, 0.4),
        "stern": (0.6, 1.0),
        "deck_height": (0.33, 0.48),
        "deck_length": (0.4, 0.6),
        "place": (-0.22, 0.12),
    },
    template="a {length} {hull} boat with a {bow} bow and {deck}",
    build=_boat,
)


def _wing(root: float, tip: float, chord: float, tip_chord: float, sweep: float, y: float, thickness: float) -> Part:
    """Both halves of a wing as one loft along z: leading edge at x = root, moved back by `sweep` at the tips."""
    rings = []
    for z, front, size in ((-tip, root - sweep, tip_chord), (0.0, root, chord), (tip, root - sweep, tip_chord)):
        rings.append(
            np.array(
                [
                    (front, y - thickness / 2, z),
                    (front, y + thickness / 2, z),
                    (front - size, y + thickness / 2, z),
                    (front - size, y - thickness / 2, z),
                ]
            )
        )
    return loft(rings)


def _plane(a: SimpleNamespace) -> list[Part]:
    half, thickness = a.extent / 2, a.thickness
    nose = [(half, 0.0, 0), (half - 0.12, 0.0, 0), (half - 0.3, 0.0, 0), (-half * 0.4, 0, 0), (-half, 0.03, 0)]
    parts = [tube(nose, [a.radius * 0.55, a.radius * 0.85, a.radius, a.radius, max(a.radius * 0.55, 0.1)], 20)]
    root = a.wing_place + a.chord / 2
    tip_chord, sweep, chord = {
        "straight": (a.chord, 0.0, a.chord),
        "swept": (a.chord * 0.8, a.sweep, a.chord),
        "delta": (0.22, 0.62 + a.chord * 0.7, 0.84 + a.chord * 0.7),
    }[a.wings]
    parts.append(_wing(root, a.wingspan / 2, chord, tip_chord, sweep, a.wing_height * a.radius, thickness))
    rear, top = -half, a.radius * 0.5 + a.fin
    parts.append(
        prism(
            [(rear, 0.0), (rear + 0.4, 0.0), (rear + 0.22, top), (rear - 0.02, top)], "z", -thickness / 2, thickness / 2
        )
    )
    parts.append(
        _wing(
            rear + 0.26, a.tail_span / 2, 0.28, 0.26, 0.04, top - thickness / 2 if a.tail == "high" else 0.03, thickness
        )
    )
    return parts


PLANE = Family(
    name="plane",
    slots={
        "body": ("thick", "slim"),
        "span": ("long", "short"),
        "wings": ("straight", "swept", "delta"),
        "tail": ("high", "low"),
    },
    ranges={
        "extent": (1.85, 2.1),
        "radius": By("body", {"thick": (0.23, 0.29), "slim": (0.12, 0.15)}),
        "wingspan": By("span", {"long": (1.85, 2.2), "short": (1.2, 1.4)}),
        "chord": (0.34, 0.46),
        "sweep": (0.42, 0.6),
        "wing_place": (0.0, 0.22),
        "wing_height": (-0.6, 0.6),
        "fin": (0.3, 0.45),
        "tail_span": (0.5, 0.66),
        "thickness": (0.165, 0.19),
    },
    template="a {body} plane with {span} {wings} wings and a {tail} tail",
    build=_plane,
)
