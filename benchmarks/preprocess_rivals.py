"""From a triangle soup to a solid and its labels: our method and those of other libraries.

Each function takes vertices (V, 3) in [-0.95, 0.95]^3, faces (F, 3), the number of grid cells along [-1, 1], and points
(N, 3), and returns bool (N,): whether each point is inside. The solids differ by up to a voxel: the surface of ours and
of mesh2sdf is one voxel outside the mesh, that of Manifold and of trimesh's voxels within a voxel of it.
"""

from collections.abc import Callable

import numpy as np

Method = Callable[[np.ndarray, np.ndarray, int, np.ndarray], np.ndarray]


def ours(vertices: np.ndarray, faces: np.ndarray, resolution: int, points: np.ndarray) -> np.ndarray:
    """g3pt: narrow band, fill, marching cubes; ray parity against the solid."""
    from g3pt.geometry.labels import inside
    from g3pt.geometry.watertight import watertight

    solid = watertight(vertices, faces, resolution)
    return inside((solid.vertices - solid.offset) / solid.scale, solid.faces, points)


def mesh2sdf_raw(vertices: np.ndarray, faces: np.ndarray, resolution: int, points: np.ndarray) -> np.ndarray:
    """mesh2sdf without fix: inside is a distance below one voxel; signs are right only for closed meshes.

    Makes no mesh.
    """
    import mesh2sdf

    return _trilinear(mesh2sdf.compute(vertices, faces, resolution), points) < 2.0 / resolution


def mesh2sdf_fixed(vertices: np.ndarray, faces: np.ndarray, resolution: int, points: np.ndarray) -> np.ndarray:
    """mesh2sdf with fix, at the level that its documentation recommends. Keeps the largest component."""
    import mesh2sdf

    field, _ = mesh2sdf.compute(vertices, faces, resolution, fix=True, level=2.0 / resolution, return_mesh=True)
    return _trilinear(field, points) < 0.0


def manifold(vertices: np.ndarray, faces: np.ndarray, resolution: int, points: np.ndarray) -> np.ndarray:
    """point-cloud-utils: Manifold (Huang 2018) with as many octree leaves as a face of the cube has cells,
    then its signed distance.
    """
    import point_cloud_utils as pcu

    closed = pcu.make_mesh_watertight(
        np.ascontiguousarray(vertices), np.ascontiguousarray(faces), resolution**2, seed=0
    )
    return pcu.signed_distance_to_mesh(np.ascontiguousarray(points), *closed)[0] < 0.0


def voxels(vertices: np.ndarray, faces: np.ndarray, resolution: int, points: np.ndarray) -> np.ndarray:
    """trimesh: voxels that the surface touches, with holes filled. Makes no mesh."""
    import trimesh

    return trimesh.Trimesh(vertices, faces, process=False).voxelized(2.0 / resolution).fill().is_filled(points)


METHODS: dict[str, Method] = {
    "g3pt": ours,
    "mesh2sdf": mesh2sdf_raw,
    "mesh2sdf-fix": mesh2sdf_fixed,
    "point-cloud-utils": manifold,
    "trimesh": voxels,
}
SLOW = ("mesh2sdf", "mesh2sdf-fix")  # takes minutes at 256 cells


def _trilinear(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear interpolation in a grid with coordinates 2 i / n - 1."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(field, (points.T + 1.0) * (len(field) / 2.0), order=1, mode="nearest")
