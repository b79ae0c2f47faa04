"""Cleaning of decoded meshes, and reduction of their faces on request.

Shapes: V vertices, F faces.
"""

import numpy as np

MIN_SHARE = 0.01  # share of the total area below which a component is a floater


def clean(vertices: np.ndarray, faces: np.ndarray, min_share: float = MIN_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Mesh with equal vertices merged and without degenerate faces, inner shells and floaters, facing outward.

    A floater is a component with less than `min_share` of the total area; an inner shell encloses negative volume.
    The largest component is always kept. An empty mesh is returned empty.
    """
    from g3pt.geometry._mesh_kernels import component_labels
    from g3pt.geometry.surface import face_normals

    vertices, faces = _merged(np.asarray(vertices), np.asarray(faces, dtype=np.int64))
    if len(faces) == 0:
        return vertices, faces
    positions = vertices.astype(np.float64)
    a, b, c = (positions[faces[:, k]] for k in range(3))
    volumes = np.einsum("fd,fd->f", a, np.cross(b, c)) / 6.0
    if volumes.sum() < 0.0:
        faces, volumes = faces[:, ::-1].copy(), -volumes
    areas = face_normals(positions, faces)[1]
    _, component = np.unique(component_labels(faces, len(vertices))[faces[:, 0]], return_inverse=True)
    area_of, volume_of = np.bincount(component, areas), np.bincount(component, volumes)
    keep = (area_of >= min_share * area_of.sum()) & (volume_of > 0.0)
    keep[np.argmax(area_of)] = True
    return _compact(vertices, faces[keep[component]])


def _merged(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal vertices and drop collapsed faces."""
    unique, index = unique_rows(vertices)
    faces = index[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return unique, faces[whole]


def unique_rows(rows_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in lexical order, and each row's index among them: np.unique(axis=0), several times as fast."""
    order = np.lexsort(rows_N3.T[::-1])
    sorted_rows = rows_N3[order]
    first = np.ones(len(rows_N3), dtype=bool)
    first[1:] = (sorted_rows[1:] != sorted_rows[:-1]).any(axis=1)
    index = np.empty(len(rows_N3), dtype=np.int64)
    index[order] = np.cumsum(first) - 1
    return sorted_rows[first], index


def _compact(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh without unused vertices."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(faces.shape)


def simplify(vertices: np.ndarray, faces: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray, str]:
    """A closed mesh reduced to at most `max_faces` faces, and ""; or the mesh unchanged,
    and why it could not be reduced.

    How: VTK's quadric decimation. It does not guarantee a closed surface, so a result that is not watertight, not
    facing outward or too large is discarded. On 25 decoded meshes at 5000, 1000 and 200 faces 75 of 75 were closed; of
    fast-simplification 74, of VTK's topology-preserving decimation 51 (and three times its error).
    """
    import pyvista

    if len(faces) <= max_faces:
        return vertices, faces, ""
    mesh = pyvista.PolyData.from_regular_faces(np.asarray(vertices, np.float32), faces)
    mesh = mesh.decimate(1.0 - max_faces / len(faces), volume_preservation=True)
    fewer_vertices, fewer = np.asarray(mesh.points, np.float32), np.asarray(mesh.regular_faces, np.int64)
    if len(fewer) > max_faces or not is_closed(fewer_vertices, fewer):
        return vertices, faces, f"not simplified: {max_faces} faces would not close"
    return fewer_vertices, fewer, ""


def is_closed(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether every edge has two faces that run along it in opposite directions, no face is degenerate,
    and the volume is positive.
    """
    if not len(faces):
        return False
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    there, back = edges @ (len(vertices), 1), edges @ (1, len(vertices))
    unique = np.unique(there)
    a, b, c = (np.asarray(vertices, np.float64)[faces[:, k]] for k in range(3))
    volume = np.einsum("fd,fd->", a, np.cross(b, c)) / 6.0
    return bool(
        len(unique) == len(there)
        and np.array_equal(unique, np.unique(back))
        and (edges[:, 0] != edges[:, 1]).all()
        and volume > 0.0
    )
