"""Renders the views of one object: the original mesh with its colours, at the place of its solid.

Runs in the sandbox's child.

How: `solid = input * scale + offset`, so views and points share coordinates, and cameras follow from the solid alone.
Procedural shapes, formats without colours and files with unreadable materials are drawn as clay.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.sources import SourceObject

# In the metadata of a row's table; not part of the dataset, whose bytes must not depend on time.
VIEW_SECONDS = "g3pt.view_seconds"


def rendered(
    source: SourceObject,
    settings: PreprocessConfig,
    solid: tuple[np.ndarray, np.ndarray],
    placement: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Columns views, view_cameras and appearance, and the seconds they took. `placement` contains scale and offset."""
    from g3pt.geometry.appearance import clay
    from g3pt.geometry.render import render_views

    started = time.monotonic()
    found = _appearance(source, settings)
    what = found.placed(placement["scale"], placement["offset"]) if found else clay(*solid)
    views, cameras = render_views(what, settings.views, settings.view_size, seed, settings.cameras, fit=solid[0])
    return {"views": views, "view_cameras": cameras, "appearance": what.kind, VIEW_SECONDS: time.monotonic() - started}


def _appearance(source: SourceObject, settings: PreprocessConfig) -> Any:
    """The object's materials; None for clay."""
    if source.source == "shapes":
        return None
    from g3pt.geometry.load_appearance import load_appearance
    from g3pt.geometry.reading import MeshError

    root = Path(settings.input)
    try:
        return load_appearance(root / source.path, root)
    except MeshError:  # its geometry could be read; unreadable materials must not cost the row
        return None


def view_seconds_of(table: pa.Table | None) -> float:
    """Seconds that the views of a converted object took; 0 without a table."""
    return float((table.schema.metadata or {}).get(VIEW_SECONDS.encode(), b"0")) if table is not None else 0.0
