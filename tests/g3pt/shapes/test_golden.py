"""What the present version of the generator gives, per family: any change must come with a new GENERATOR_VERSION."""

from pathlib import Path

import numpy as np

from g3pt.shapes import FAMILIES, GENERATOR_VERSION, make_shape

GOLDEN = Path(__file__).with_name("golden.txt")


def golden_lines() -> list[str]:
    """A line with the version, then one for each of three ids of each family: sizes, means of |x|, |y|, |z|,
    area, caption.
    """
    lines = [f"version {GENERATOR_VERSION}"]
    for family in FAMILIES:
        for index, seed in ((0, 0), (1, 0), (2, 1)):
            shape = make_shape(f"shapes/{family}-{index:05d}", seed)
            corners = shape.vertices[shape.faces]
            sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            means = " ".join(f"{value:.4f}" for value in np.abs(shape.vertices).mean(axis=0))
            area = np.linalg.norm(sides, axis=1).sum() / 2
            sizes = f"{len(shape.vertices)} {len(shape.faces)}"
            lines.append(f"{shape.id} seed {seed}: {sizes} {means} {area:.4f} {shape.caption}")
    return lines


def test_shapes_are_those_of_their_version() -> None:
    assert golden_lines() == GOLDEN.read_text().splitlines(), (
        "shapes changed: raise GENERATOR_VERSION in g3pt/shapes/__init__.py, then write golden_lines() to golden.txt"
    )
