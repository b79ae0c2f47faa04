"""One mesh to the tensors of one dataset row: solid, surface points, query points, labels, quality figures.

Labels are computed at the stored float16 points against the solid itself. `num_faces` and `was_watertight` describe
the mesh as given, the other figures the solid (g3pt.geometry.quality).

Shapes: P surface points, Ps sharp points, Q query points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from g3pt.geometry.watertight import METHODS, OPEN_SURFACES, Solid


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Parameters of the conversion: grid resolution, method, what becomes of open surfaces, and how many points
    of each kind.
    """

    resolution: int = 256
    watertight: str = "narrowband"
    open_surfaces: str = "fill"
    num_surface: int = 16384
    num_sharp: int = 4096
    num_queries: int = 32768
    near_sigmas: tuple[float, ...] = (0.001, 0.005, 0.02)

    def __post_init__(self) -> None:
        if self.resolution < 16:
            raise ValueError(f"resolution must be at least 16, not {self.resolution}")
        if self.watertight not in METHODS:
            raise ValueError(f"watertight must be one of {METHODS}, not {self.watertight!r}")
        if self.open_surfaces not in OPEN_SURFACES:
            raise ValueError(f"open_surfaces must be one of {OPEN_SURFACES}, not {self.open_surfaces!r}")
        if self.num_queries < 0 or self.num_queries % 8:
            raise ValueError(f"num_queries must be 0 or a positive multiple of 8, not {self.num_queries}")
        if self.num_surface <= 0:
            raise ValueError(f"num_surface must be positive, not {self.num_surface}")
        if self.num_sharp < 0:
            raise ValueError(f"num_sharp must not be negative, not {self.num_sharp}")
        if not self.near_sigmas or min(self.near_sigmas) <= 0.0:
            raise ValueError(f"near_sigmas must be positive, not {self.near_sigmas}")


def convert_mesh(
    vertices: np.ndarray, faces: np.ndarray, config: ConvertConfig | None = None, seed: int = 0
) -> dict[str, Any]:
    """The tensors and figures of a dataset row for one mesh (V, 3), (F, 3); the same arguments give the same bytes.

    Keys: surface, sharp, eval_surface (P, 6) and near_points, volume_points (Q, 3) float16; near_occupancy,
    volume_occupancy uint8 (Q / 8,) packed little; the numbers of records.NUMBER_COLUMNS; scale, offset (3,) with
    solid = input * scale + offset; solid (vertices, faces); with open_surfaces "fill" those of records.FILL_COLUMNS.
    Without sharp points (num_sharp = 0) or query points (num_queries = 0) their keys are missing, and volume_share is
    nan. Raises MeshError when the mesh can't become a solid.
    """
    from g3pt.geometry.quality import chamfer_to_input, is_watertight, solid_figures
    from g3pt.geometry.surface import sample_sharp, sample_surface
    from g3pt.geometry.watertight import watertight

    config = config or ConvertConfig()
    solid = watertight(vertices, faces, config.resolution, config.watertight, config.open_surfaces)
    streams = [np.random.default_rng([seed, k]) for k in range(6)]
    surface = sample_surface(solid.vertices, solid.faces, config.num_surface, streams[0])
    sharp = sample_sharp(solid.vertices, solid.faces, config.num_sharp, streams[1]) if config.num_sharp else None
    eval_surface = sample_surface(solid.vertices, solid.faces, config.num_surface, streams[2])
    filling = {"filled_by": solid.filling.rule, "filled_share": solid.filling.share}
    return {
        "surface": surface.astype(np.float16),
        **({} if sharp is None else {"sharp": sharp.astype(np.float16)}),
        "eval_surface": eval_surface.astype(np.float16),
        **(labelled_points(solid, config, streams[3], streams[4]) if config.num_queries else {"volume_share": np.nan}),
        "num_faces": len(faces),
        "was_watertight": is_watertight(vertices, faces),
        "chamfer_to_input": chamfer_to_input(solid, vertices, faces, streams[5]),
        **solid_figures(solid),
        **(filling if config.open_surfaces == "fill" else {}),
        "scale": solid.scale,
        "offset": solid.offset,
        "solid": (solid.vertices, solid.faces),
    }


def labelled_points(
    solid: Solid, config: ConvertConfig, near_rng: np.random.Generator, volume_rng: np.random.Generator
) -> dict[str, Any]:
    """Query points near the surface and in the volume, their packed labels, and the share of the volume's
    that are inside.
    """
    from g3pt.geometry.labels import inside

    near = near_points(solid, config, near_rng).astype(np.float16)
    volume = volume_rng.uniform(-1.0, 1.0, (config.num_queries, 3)).astype(np.float16)
    labels = inside(solid.vertices, solid.faces, np.concatenate([near, volume]))
    return {
        "near_points": near,
        "volume_points": volume,
        "near_occupancy": np.packbits(labels[: config.num_queries], bitorder="little"),
        "volume_occupancy": np.packbits(labels[config.num_queries :], bitorder="little"),
        "volume_share": float(labels[config.num_queries :].mean()),
    }


def near_points(solid: Solid, config: ConvertConfig, rng: np.random.Generator) -> np.ndarray:
    """Surface points (Q, 3) with Gaussian noise, an equal share for each sigma, clipped to [-1, 1]^3."""
    from g3pt.geometry.surface import sample_surface

    points = sample_surface(solid.vertices, solid.faces, config.num_queries, rng)[:, :3]
    sigmas = np.resize(config.near_sigmas, config.num_queries)[:, None]
    return np.clip(points + sigmas * rng.standard_normal(points.shape), -1.0, 1.0)
