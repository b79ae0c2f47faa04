"""The engine behind the page: one model, one thread, a bounded queue of requests.

Samples of waiting requests are drawn together, up to BATCH at once; a sample's codes do not depend on its batch
(`G3PT.sample_codes`), and each mesh is decoded alone, so a request has the same meshes whoever else waits. If a request
asks for previews, its first sample is decoded on a coarse grid after each scale, while the finer scales are still
missing.

Shapes: S tokens of all scales, T tokens of the scales drawn so far.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from g3pt.geometry.quality import is_watertight
from g3pt.geometry.search import NoSurface
from g3pt.models.decoding import decode_meshes
from g3pt.models.sampling import SampleConfig
from pipelines.cli.errors import one_line

BATCH = 8  # samples drawn together, and the most of one request
PREVIEW_RESOLUTION = 32
KEPT = 64  # finished requests whose meshes can be fetched


class Busy(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class Shape:
    """A mesh, or why there is none."""

    vertices: np.ndarray
    faces: np.ndarray
    error: str = ""

    @property
    def is_watertight(self) -> bool:
        """Whether every edge has two faces and the volume is positive."""
        return not self.error and is_watertight(self.vertices, self.faces)


@dataclass(kw_only=True)
class Request:
    """What was asked for, and what there is of it so far. Written by the engine's thread alone once it is queued."""

    text: str | None
    pixels: Any
    seeds: Sequence[int]
    settings: SampleConfig
    known: torch.Tensor
    resolution: int
    with_previews: bool = False
    note: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "waiting"  # then running, then done or failed
    error: str = ""
    previews: dict[int, Shape] = field(default_factory=dict)  # by scale, from 1
    shapes: list[Shape] = field(default_factory=list)
    seconds: float = 0.0
    finished: threading.Event = field(default_factory=threading.Event, repr=False)


class Engine:
    """Draws and decodes requests with one model. `start` begins the thread, `stop` ends it."""

    def __init__(self, model: Any, max_waiting: int) -> None:
        self.model, self.max_waiting = model, max_waiting
        self._waiting: deque[Request] = deque()
        self._known: OrderedDict[str, Request] = OrderedDict()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at work."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def put(self, request: Request) -> int:
        """Queue a request; return how many wait before it. Busy if the queue is full."""
        with self._changed:
            if len(self._waiting) >= self.max_waiting:
                raise Busy(f"{self.max_waiting} requests are waiting; try again later")
            self._waiting.append(request)
            self._known[request.id] = request
            self._forget()
            self._changed.notify_all()
            return len(self._waiting) - 1

    def get(self, request_id: str) -> Request | None:
        """A request by its id; None if it is unknown or was forgotten."""
        return self._known.get(request_id)

    def position(self, request: Request) -> int:
        """How many requests wait before this one; 0 if it does not wait."""
        with self._changed:
            return self._waiting.index(request) if request in self._waiting else 0

    def _forget(self) -> None:
        done = [name for name, request in self._known.items() if request.finished.is_set()]
        for name in done[: max(0, len(done) - KEPT)]:
            del self._known[name]

    def _run(self) -> None:
        torch.set_num_threads(1)
        while (batch := self._next()) is not None:
            started = time.perf_counter()
            try:
                self._make(batch)
            except Exception as error:  # the thread's outermost frame: these requests fail, the others go on
                print(f"serve: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
                for request in batch:
                    request.error = request.error or "the model failed on this request"
            for request in batch:
                request.seconds = time.perf_counter() - started
                request.state = "failed" if request.error else "done"
                request.finished.set()

    def _next(self) -> list[Request] | None:
        """The next requests, with at most BATCH samples together; None after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            batch, count = [], 0
            while self._waiting and count + len(self._waiting[0].seeds) <= BATCH:
                batch.append(self._waiting.popleft())
                batch[-1].state = "running"
                count += len(batch[-1].seeds)
            return batch

    @torch.inference_mode()
    def _make(self, batch: list[Request]) -> None:
        rows = [(request, number) for request in batch for number in range(len(request.seeds))]
        encoded = [self.model.encode_prompts([request.text], [request.pixels]) for request, _ in rows]
        codes_NS = self.model.sample_encoded(
            torch.cat([text_BC for text_BC, _ in encoded]),
            None if encoded[0][1] is None else torch.cat([image_BMC for _, image_BMC in encoded]),
            [request.seeds[number] for request, number in rows],
            [request.settings for request, _ in rows],
            BATCH,
            [request.known for request, _ in rows],
            watch=lambda row, codes_T: self._preview(*rows[row], codes_T),
        )
        for (request, _), codes_S in zip(rows, codes_NS, strict=True):
            request.shapes.append(self._decode(codes_S, len(self.model.scales), request.resolution))

    def _preview(self, request: Request, number: int, codes_T: torch.Tensor) -> None:
        scale = int(np.searchsorted(np.cumsum(self.model.scales), len(codes_T))) + 1
        if request.with_previews and number == 0 and scale < len(self.model.scales):
            request.previews[scale] = self._decode(codes_T, scale, PREVIEW_RESOLUTION)

    def _decode(self, codes_T: torch.Tensor, num_scales: int, resolution: int) -> Shape:
        tokenizer = self.model.tokenizer
        (found,) = decode_meshes(tokenizer, tokenizer.decode_latents(codes_T[None], num_scales), resolution)
        return Shape(found.vertices, found.faces, _without_surface(found.reason))


def _without_surface(reason: NoSurface | None) -> str:
    return "" if reason is None else f"{reason.status}: {one_line(reason)}; another seed usually helps"
