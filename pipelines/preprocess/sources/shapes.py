"""Procedural shapes as source objects: the content of one follows from the generator's version, its id and the seed.

The shapes themselves, and what to do when they change, are in g3pt/shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from g3pt.data.records import canonical_json
from pipelines.preprocess.sources.objects import SourceObject


def list_shapes(seed: int, seeds: Sequence[int] = ()) -> Iterator[SourceObject]:
    """All shapes of `seed`, or of each of the `seeds`; caption and category are filled in when one is made."""
    from g3pt.shapes import seeded_id, shape_ids

    names = shape_ids()
    if not seeds:
        return (shape_object(name, seed) for name in names)
    return (shape_object(seeded_id(name, each), 0) for each in seeds for name in names)


def shape_object(name: str, seed: int) -> SourceObject:
    """One shape by its id, which may name another seed (`g3pt.shapes.seeded_id`).

    Its content hash is that of its recipe: building 100,000 shapes to hash them takes ten minutes.
    """
    from g3pt.shapes import GENERATOR_VERSION, without_seed

    plain, seed = without_seed(name, seed)
    made_of = canonical_json({"generator": GENERATOR_VERSION, "id": plain, "seed": seed})
    content = hashlib.sha256(made_of.encode("utf-8")).hexdigest()
    return SourceObject(id=name, source="shapes", content_sha256=content, license="CC0-1.0", author="g3pt shapes")
