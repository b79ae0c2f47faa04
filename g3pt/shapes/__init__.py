"""Procedural captioned objects: 100,000 ids per seed, each of which determines an object's geometry and caption.

How: an id `shapes/<family>-<index>` and a seed give the random stream. `s<seed>/shapes/<family>-<index>` is that object
of another seed, so that one dataset can have objects of several seeds. The family draws its attributes, builds
overlapping closed parts and names the visible attributes in a caption of a closed vocabulary. NumPy only.
Source: none. Ours: all of it (the paper trains on Objaverse).
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np

from g3pt.shapes.families import ALL
from g3pt.shapes.primitives import Part, join

# Identifies a shape's content together with its id and seed. Raise it whenever an id gives another mesh or caption, so
# that older datasets are recognised as different; tests/g3pt/shapes/golden.txt contains what this version gives.
GENERATOR_VERSION = 1
FAMILIES: tuple[str, ...] = tuple(ALL)
NUM_SHAPES = 100_000  # of one seed
SEEDED_ID = re.compile(r"s([1-9][0-9]*)/(.+)", re.DOTALL)
BOX = 0.95


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One object: vertices float64 (V, 3) inside the box, faces int64 (F, 3) of overlapping closed parts, y up."""

    id: str
    family: str
    caption: str
    attributes: dict[str, str | float]
    vertices: np.ndarray
    faces: np.ndarray


def shape_ids() -> list[str]:
    """All ids of one seed, equally many per family but for a remainder."""
    counts = [NUM_SHAPES // len(FAMILIES) + (k < NUM_SHAPES % len(FAMILIES)) for k in range(len(FAMILIES))]
    return [
        f"shapes/{family}-{index:05d}" for family, count in zip(FAMILIES, counts, strict=True) for index in range(count)
    ]


def seeded_id(shape_id: str, seed: int) -> str:
    """The id of an object of `seed` in a dataset of several seeds: `s<seed>/<id>`, and the plain id for seed 0."""
    return f"s{seed}/{shape_id}" if seed else shape_id


def without_seed(shape_id: str, seed: int = 0) -> tuple[str, int]:
    """The plain id and the seed that `s<seed>/<id>` names. A plain id is returned as it is, with the given seed."""
    match = SEEDED_ID.fullmatch(shape_id)
    return (match[2], int(match[1])) if match else (shape_id, seed)


def parse_id(shape_id: str) -> tuple[str, int]:
    """The family and index of a plain id; ValueError for anything else."""
    stem, _, index = shape_id.removeprefix("shapes/").partition("-")
    if (
        not shape_id.startswith("shapes/")
        or stem not in ALL
        or len(index) != 5
        or not index.isascii()
        or not index.isdigit()
    ):
        raise ValueError(f"not a shape id: {shape_id!r} (expected shapes/<family>-<five digits>)")
    return stem, int(index)


def make_shape(shape_id: str, seed: int = 0) -> Shape:
    """The object of an id: the same arrays for the same id and seed, whatever else was made before.

    The seed of `s<seed>/<id>` wins.
    """
    plain_id, seed = without_seed(shape_id, seed)
    family, _ = parse_id(plain_id)
    digest = hashlib.sha256(f"{plain_id}|{seed}".encode()).digest()
    attributes = ALL[family].draw(np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big"))))
    vertices, faces = build(family, attributes)
    caption = ALL[family].caption({slot: attributes[slot] for slot in ALL[family].slots})
    return Shape(id=shape_id, family=family, caption=caption, attributes=attributes, vertices=vertices, faces=faces)


def build(family: str, attributes: dict[str, str | float]) -> Part:
    """The mesh of given attributes, centred by its bounding box and scaled uniformly into the box."""
    vertices, faces = join(ALL[family].build(SimpleNamespace(**attributes)))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return (vertices - (low + high) / 2) * (2 * BOX / (high - low).max()), faces.astype(np.int64)


@cache
def all_captions() -> dict[str, tuple[str, dict[str, str]]]:
    """Every caption that can occur: {caption: (family, slot values)}."""
    return {family.caption(values): (name, values) for name, family in ALL.items() for values in family.combinations()}


@cache
def caption_vocabulary() -> tuple[str, ...]:
    """The closed vocabulary: every word that a caption can contain, sorted."""
    return tuple(sorted({word for caption in all_captions() for word in caption.split()}))


def caption_family(caption: str) -> str | None:
    """The family that a caption names, or None.

    Free text names a family if exactly one family's name is a word of it.
    """
    if caption in all_captions():
        return all_captions()[caption][0]
    named = [family for family in FAMILIES if family in caption.lower().replace(",", " ").replace(".", " ").split()]
    return named[0] if len(named) == 1 else None


family_of = caption_family


def caption_attributes(caption: str) -> dict[str, str]:
    """The slot values that a caption of ours states; ValueError for any other text."""
    if caption not in all_captions():
        raise ValueError(f"not a caption of the procedural shapes: {caption!r}")
    return dict(all_captions()[caption][1])


def unseen_captions(train_captions: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """`count` captions absent from training, alternating between families, repeated only after all were used.

    A caption is eligible only if its family occurs in training: an unseen combination of known words, not an unseen
    family.
    """
    train = set(train_captions)
    families = {caption_family(caption) for caption in train}
    random = np.random.default_rng(seed)
    pools: dict[str, list[str]] = {family: [] for family in FAMILIES if family in families}
    for caption, (family, _) in all_captions().items():
        if family in pools and caption not in train:
            pools[family].append(caption)
    pools = {family: [pool[k] for k in random.permutation(len(pool))] for family, pool in pools.items() if pool}
    if not pools:
        raise ValueError("no unseen caption is left: training holds every combination, or none of ours")
    rounds = max(len(pool) for pool in pools.values())
    order = [pool[k] for k in range(rounds) for pool in pools.values() if k < len(pool)]
    return [order[k % len(order)] for k in range(count)]
