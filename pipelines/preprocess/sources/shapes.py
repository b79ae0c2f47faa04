"""Procedural shapes: what one is made of is the source code of its generator, its id and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from g3pt.data.records import canonical_json
from pipelines.preprocess.sources.objects import SourceObject


def list_shapes(seed: int) -> Iterator[SourceObject]:
    """All shapes; caption and category are filled in when one is made."""
    from g3pt.shapes import shape_ids

    generator = generator_hash()
    return (shape_object(name, seed, generator) for name in shape_ids())


def generator_hash() -> str:
    """sha256 over the source of g3pt.shapes, less its ruler. Building 100,000 shapes only to hash them would take ten minutes."""
    import g3pt.shapes

    files = sorted(file for file in Path(g3pt.shapes.__file__).parent.glob("*.py") if file.name != "measure.py")
    return hashlib.sha256(b"".join(file.name.encode("utf-8") + file.read_bytes() for file in files)).hexdigest()


def shape_object(name: str, seed: int, generator: str) -> SourceObject:
    """One shape by its id."""
    made_of = canonical_json({"generator": generator, "id": name, "seed": seed})
    content = hashlib.sha256(made_of.encode("utf-8")).hexdigest()
    return SourceObject(id=name, source="shapes", content_sha256=content, license="CC0-1.0", author="g3pt shapes")
