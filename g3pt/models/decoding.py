"""From latents to meshes: the one place where a tokenizer's decoder and the iso-surface search meet.

Generation and both evaluations call it. The search asks for a number of points per object; these are packed into calls
of the decoder of at most one chunk: each row has points of one object, rows of similar length share a call, shorter
ones are padded.
Memory: a chunk's activations, and per object what `g3pt.geometry.search` states. Objects are searched in groups of
`group_size`, so that a group of shapes with a surface of 12 square units (a car has about 5) needs under 1 GB.

Source: G3PT (arXiv 2409.06322), occupancy at query points. Ours: chunks, packing, groups.
Shapes: B batch, L latents, D width, Q query points, V vertices, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from g3pt.geometry.search import Crossed, NoSurface
    from g3pt.models.tokenizer import CVQ

CHUNK_GPU = 65536
CHUNK_CPU = 4096  # fits a CPU's cache


@dataclass(frozen=True)
class Decoded:
    """One object's mesh, vertices float32 (V, 3) and faces int64 (F, 3); empty, with the reason,
    where there is none.
    """

    vertices: np.ndarray
    faces: np.ndarray
    reason: NoSurface | None = None

    @property
    def status(self) -> str:
        """ "ok", or the name of why there is no mesh."""
        return "ok" if self.reason is None else self.reason.status


def logits(tokenizer: CVQ, latents_BLD: Tensor, points_Q3: np.ndarray) -> np.ndarray:
    """Occupancy logits float32 (Q,) at one object's points, in the box [-1, 1]^3; positive inside. By chunks."""
    return packed_logits(tokenizer, latents_BLD, {0: points_Q3})[0]


@torch.inference_mode()
def logits_of_rows(tokenizer: CVQ, latents_BLD: Tensor, rows_BQ3: list[np.ndarray]) -> list[np.ndarray]:
    """Occupancy logits of each object's own points in one call of the decoder; rows are padded to the longest."""
    lengths, longest = [len(row) for row in rows_BQ3], max(map(len, rows_BQ3))
    points_BQ3 = np.zeros((len(rows_BQ3), longest, 3), dtype=np.float32)
    for padded, row in zip(points_BQ3, rows_BQ3, strict=True):
        padded[: len(row)] = row
    logits_BQ = (
        tokenizer.occupancy_logits(latents_BLD, torch.from_numpy(points_BQ3).to(latents_BLD.device))
        .float()
        .cpu()
        .numpy()
    )
    return [row[:length] for row, length in zip(logits_BQ, lengths, strict=True)]


def decode_meshes(
    tokenizer: CVQ, latents_BLD: Tensor, resolution: int = 128, coarse: int | None = None
) -> list[Decoded]:
    """Each object's cleaned mesh, or why it has none.

    `coarse`: cells per side of the first grid, as in `geometry.isosurface.extract`.
    """
    from g3pt.geometry.cleanup import clean
    from g3pt.geometry.isosurface import extract_many
    from g3pt.geometry.search import NoSurface

    found: list[Decoded] = []
    for group_BLD in latents_BLD.split(group_size(resolution)):
        surfaces = extract_many(
            lambda wanted, group=group_BLD: packed_logits(tokenizer, group, wanted), len(group_BLD), resolution, coarse
        )
        for surface in surfaces:
            if isinstance(surface, NoSurface):
                found.append(Decoded(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), surface))
            else:
                found.append(Decoded(*clean(*surface)))
    return found


def decode_mesh(
    tokenizer: CVQ, latents_BLD: Tensor, resolution: int = 128, coarse: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One object's latents -> (vertices float32 (V, 3), faces int64 (F, 3)), without floating fragments.

    May raise NoSurface.
    """
    (found,) = decode_meshes(tokenizer, latents_BLD, resolution, coarse)
    if found.reason is not None:
        raise found.reason
    return found.vertices, found.faces


def decode_field(
    tokenizer: CVQ, latents_1LD: Tensor, resolution: int = 128, coarse: int | None = None
) -> Crossed | NoSurface:
    """The part of `decode_mesh` that needs the model: the cells that one object's surface crosses, or why none.

    `geometry.isosurface.cleaned_mesh` makes the mesh of them.
    """
    from g3pt.geometry.isosurface import search_many

    ((_, field),) = search_many(
        lambda wanted: packed_logits(tokenizer, latents_1LD, wanted), len(latents_1LD), resolution, coarse
    )
    return field


def group_size(resolution: int) -> int:
    """Objects searched together: 8 at 256 cells per side, 2 at 512, 32 at 128 and below."""
    return int(np.clip(8 * 256**2 // resolution**2, 1, 32))


def packed_logits(tokenizer: CVQ, latents_BLD: Tensor, wanted: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Logits at each object's points (index in the batch -> points), by calls of at most one chunk of points,
    padding included.
    """
    chunk = CHUNK_GPU if latents_BLD.is_cuda else CHUNK_CPU
    found = {number: np.empty(len(points), dtype=np.float32) for number, points in wanted.items()}
    for pieces in packed_pieces({number: len(points) for number, points in wanted.items()}, chunk):
        rows = [wanted[number][start:end] for number, start, end in pieces]
        objects = torch.tensor([number for number, _, _ in pieces], device=latents_BLD.device)
        latents = latents_BLD[objects] if len(latents_BLD) > 1 else latents_BLD
        for (number, start, end), row in zip(pieces, logits_of_rows(tokenizer, latents, rows), strict=True):
            found[number][start:end] = row
    return found


def packed_pieces(lengths: dict[int, int], chunk: int) -> list[list[tuple[int, int, int]]]:
    """All points as calls of pieces (index, start, end); a call's number
    of pieces times its longest is at most `chunk`.
    """
    pieces = [
        (number, start, min(start + chunk, length))
        for number, length in lengths.items()
        for start in range(0, length, chunk)
    ]
    calls: list[list[tuple[int, int, int]]] = []
    longest = 0
    for piece in sorted(pieces, key=lambda piece: piece[1] - piece[2]):
        if not calls or (len(calls[-1]) + 1) * longest > chunk:
            calls.append([])
            longest = piece[2] - piece[1]
        calls[-1].append(piece)
    return calls
