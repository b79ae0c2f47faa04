"""Variants of an object: turned about its vertical axis, mirrored in half of the cases, and a little smaller. A
tokenizer gives each variant codes of its own, so that a generator reads more than one code of an object.

How: variant 0 is the object itself. What others are follows from (variant, id) alone. A variant is centred by the box
of its points again, so it lies in the box of every object. Where a file does not say its vertical axis, that is y.
Ours: all of it.
Shapes: P points.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from g3pt.data.records import id_hash

HALF_SIDE = 0.95  # of the box that contains every object of a dataset
SMALLEST = 0.8  # longest side of a variant over that of the object
AXES = {"x": 0, "y": 1, "z": 2}
COLUMNS = ("id", "up_axis")  # which `varied` reads beside the points


def varied(row: dict[str, Any], variant: int) -> dict[str, Any]:
    """The row with the `surface` and `sharp` points (P, 6) of a variant, in float16, as far as it has them."""
    if variant == 0:
        return row
    rng = np.random.default_rng([variant, id_hash(row["id"])])
    turn_33 = _turn(AXES.get(row["up_axis"], AXES["y"]), rng.uniform(0, 2 * np.pi), bool(rng.random() < 0.5))
    points_P3 = row["surface"][:, :3].astype(np.float32) @ turn_33.T
    low, high = points_P3.min(axis=0), points_P3.max(axis=0)
    scale = rng.uniform(SMALLEST, 1) * HALF_SIDE / (0.5 * (high - low).max())
    moved = {}
    for name in ("surface", "sharp"):
        if name in row:
            values_P6 = row[name].astype(np.float32)
            places_P3 = (values_P6[:, :3] @ turn_33.T - 0.5 * (low + high)) * scale
            moved[name] = np.concatenate([places_P3, values_P6[:, 3:] @ turn_33.T], axis=1).astype(np.float16)
    return row | moved


def _turn(up: int, angle: float, is_mirrored: bool) -> np.ndarray:
    """The matrix (3, 3) of a turn about the axis `up` after a reflection of the next axis, if there is one."""
    first, second = (up + 1) % 3, (up + 2) % 3
    matrix_33 = np.eye(3, dtype=np.float32)
    matrix_33[first, first] = matrix_33[second, second] = np.cos(angle)
    matrix_33[first, second], matrix_33[second, first] = -np.sin(angle), np.sin(angle)
    if is_mirrored:
        matrix_33[:, first] *= -1
    return matrix_33
