"""Where objects come from: `shapes` (procedural), `dir` (a folder of meshes), `objaverse`.

An object has an id and a content hash.

How: a `Listing` streams the requested objects of a source, with the columns about their origin. Nothing is converted
and no mesh is opened here. Shapes have a content hash at once; files get theirs where they are converted (`content`).
"""

from pipelines.preprocess.sources.listing import Listing
from pipelines.preprocess.sources.objects import SourceObject, inputs_hash

__all__ = ["Listing", "SourceObject", "inputs_hash"]
