"""Time of each stage of converting an object: the pipeline's own functions, timed where it calls them.

Each function named in STAGES is replaced by one that adds its CPU seconds and peak memory to its stage. A stage called
within another counts as the outer one: the samples that Chamfer draws belong to Chamfer. So stages never overlap, and
`rest` is the time outside all of them.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from benchmarks.machine import Cost, cost

STAGES = {  # stage -> its functions, by the module in which a call looks them up
    "load": ("g3pt.geometry.load:load_mesh",),
    "grid": ("g3pt.geometry.watertight:_into_grid", "g3pt.geometry.watertight:_normalised"),
    "narrow band": ("g3pt.geometry.watertight:_narrowband",),
    "fill": ("g3pt.geometry.watertight:outside_field",),
    "marching cubes": ("skimage.measure:marching_cubes",),
    "near points": ("g3pt.geometry.convert:near_points",),
    "surface samples": ("g3pt.geometry.surface:sample_surface",),
    "sharp samples": ("g3pt.geometry.surface:sample_sharp",),
    "labels": ("g3pt.geometry.labels:inside",),
    "quality": ("g3pt.geometry.quality:is_watertight", "g3pt.geometry.quality:solid_figures"),
    "chamfer": ("g3pt.geometry.quality:chamfer_to_input",),
    "views": ("g3pt.geometry.render:render_views",),
    "row": ("g3pt.data.records:rows_to_table",),
    "parquet": ("g3pt.data.datasets:parquet_bytes",),
}


@contextlib.contextmanager
def traced() -> Iterator[dict[str, Cost]]:
    """Costs by stage of the objects converted inside the block."""
    costs = {stage: Cost() for stage in STAGES}
    inside = [False]
    with contextlib.ExitStack() as stack:
        for stage, functions in STAGES.items():
            for function in functions:
                stack.enter_context(_replaced(function, costs[stage], inside))
        yield costs


@contextlib.contextmanager
def _replaced(function: str, total: Cost, inside: list[bool]) -> Iterator[None]:
    module_name, _, name = function.partition(":")
    module = importlib.import_module(module_name)
    original = getattr(module, name)
    setattr(module, name, _timed(original, total, inside))
    try:
        yield
    finally:
        setattr(module, name, original)


def _timed(function: Callable[..., Any], total: Cost, inside: list[bool]) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            return function(*args, **kwargs)
        inside[0] = True
        try:
            with cost() as found:
                return function(*args, **kwargs)
        finally:
            inside[0] = False
            total.seconds += found.seconds
            total.peak_mb = max(total.peak_mb, found.peak_mb)

    return timed
