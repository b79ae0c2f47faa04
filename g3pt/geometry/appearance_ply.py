"""What the triangles of a PLY file look like: the triangles of `ply.py` with the colours of its vertices, else
of its faces.

Colours are red, green, blue and perhaps alpha, sRGB; integers are shares of their type's largest value.
"""

import numpy as np

from g3pt.geometry.appearance import Material, Part, srgb_to_linear
from g3pt.geometry.ply import Element, face_polygons, read_elements, surface

_WHITE = (1.0, 1.0, 1.0, 1.0)
_NAMES = (("red", "green", "blue", "alpha"), ("diffuse_red", "diffuse_green", "diffuse_blue", "diffuse_alpha"))


def ply_parts(content: bytes) -> list[Part]:
    """One part with vertex or face colours, or clay without any; no part for a file without faces."""
    elements = read_elements(content)
    vertices, faces = surface(elements)
    if not len(faces):
        return []
    of_vertices = _colours(elements["vertex"])
    of_faces = _colours(elements.get("face"))
    if of_vertices is not None:
        return [Part(vertices=vertices, faces=faces, colours=of_vertices, material=Material(colour=_WHITE))]
    if of_faces is None:
        return [Part(vertices=vertices, faces=faces)]
    colours = np.ones((len(faces), 4), dtype=np.float32)  # faces of strips have no colours
    polygons = face_polygons(elements)
    colours[: len(polygons)] = of_faces[polygons]
    return [
        Part(
            vertices=vertices[faces].reshape(-1, 3),
            faces=np.arange(3 * len(faces)).reshape(-1, 3),
            colours=np.repeat(colours, 3, axis=0),
            material=Material(colour=_WHITE),
        )
    ]


def _colours(element: Element | None) -> np.ndarray | None:
    """Linear RGBA (R, 4) of an element's rows; None if it declares no colours."""
    if element is None:
        return None
    for names in _NAMES:
        if not set(names[:3]) <= element.scalars.keys():
            continue
        rgba = np.ones((element.count, 4))
        types = {p.name: np.dtype(p.type) for p in element.properties}
        for k, name in enumerate(names):
            if name in element.scalars:
                rgba[:, k] = _shares(element.scalars[name], types[name])
        return np.concatenate([srgb_to_linear(rgba[:, :3]), rgba[:, 3:]], axis=1).astype(np.float32)
    return None


def _shares(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Values in [0, 1]; floats above 1 are bytes."""
    values = np.nan_to_num(values.astype(np.float64), posinf=1.0, neginf=0.0)
    largest = float(np.iinfo(kind).max) if kind.kind in "iu" else 255.0 if values.max(initial=0.0) > 1.0 else 1.0
    return np.clip(values / largest, 0.0, 1.0)
