"""CPU seconds of the page's engine: to a first preview, and for requests that wait together or one by one.

    python benchmarks/serve.py --help

CPU seconds of this process, not wall time: they hold on a busy machine, too. "One by one" asks for the next mesh when
the last is done; "together" queues all of them first. Meshes of both ways are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine
from g3pt.models.sampling import SampleConfig
from pipelines.serve.config import ServeConfig
from pipelines.serve.engine import BATCH, Engine, Request
from pipelines.serve.job import loaded

PROMPTS = ("a tall chair", "a round table", "a car", "a lamp", "a mug", "a plane", "a sofa", "a vase")


def wish(number: int, resolution: int, previews: bool = False) -> Request:
    """A request for one mesh."""
    none = torch.zeros(0, dtype=torch.int64)
    return Request(text=PROMPTS[number % len(PROMPTS)], pixels=None, seeds=[number], settings=SampleConfig(),
                   known=none, resolution=resolution, with_previews=previews)  # fmt: skip


def to_first_preview(model: Any, resolution: int) -> tuple[float, float]:
    """CPU seconds until the first preview can be fetched, and until the mesh can."""
    engine, request = Engine(model, 1), wish(0, resolution, previews=True)
    engine.start()
    started = time.process_time()
    engine.put(request)
    while not request.previews:
        time.sleep(0.002)
    first = time.process_time() - started
    request.finished.wait()
    whole = time.process_time() - started
    engine.stop()
    return first, whole


def made(model: Any, count: int, resolution: int, together: bool) -> tuple[float, list[Request]]:
    """CPU seconds for `count` requests of one mesh each, and the requests."""
    engine, requests = Engine(model, count), [wish(number, resolution) for number in range(count)]
    started = time.process_time()
    if together:
        for request in requests:
            engine.put(request)
        engine.start()
    else:
        engine.start()
        for request in requests:
            engine.put(request)
            request.finished.wait()
    for request in requests:
        request.finished.wait()
    engine.stop()
    return time.process_time() - started, requests


def are_equal(some: list[Request], others: list[Request]) -> bool:
    """Whether all meshes are the same, bit by bit."""
    pairs = [(a.shapes[0], b.shapes[0]) for a, b in zip(some, others, strict=True)]
    return all(np.array_equal(a.vertices, b.vertices) and np.array_equal(a.faces, b.faces) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/g3pt-nano-car", help="run or export of a generator")
    parser.add_argument("--requests", type=int, default=BATCH, help="requests of one mesh")
    parser.add_argument("--resolutions", default="32,64", help="cells per side of the surface's grid")
    parser.add_argument("--json", type=Path, help="also write the figures with the hardware here")
    flags = parser.parse_args()
    model, rows = loaded(ServeConfig(model=flags.model, device="cpu")), []
    for resolution in map(int, flags.resolutions.split(",")):
        to_first_preview(model, resolution)
        first, whole = to_first_preview(model, resolution)
        alone, some = made(model, flags.requests, resolution, together=False)
        batched, others = made(model, flags.requests, resolution, together=True)
        rows.append(
            {"resolution": resolution, "first_preview_cpu_s": first, "with_previews_cpu_s": whole,
             "one_by_one_cpu_s": alone, "together_cpu_s": batched, "ratio": alone / batched,
             "equal": are_equal(some, others)}
        )  # fmt: skip
        print(
            " ".join(
                f"{name}={value:.3f}" if isinstance(value, float) else f"{name}={value}"
                for name, value in rows[-1].items()
            ),
            flush=True,
        )
    if flags.json:
        flags.json.write_text(
            json.dumps({"rows": rows} | machine.about("torch", "fastapi", "uvicorn"), indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
