"""Where objects come from: `shapes` (procedural), `dir` (a folder of meshes), `objaverse`. Each object is known by id and content.

How: a `Listing` streams the objects of a source that were asked for, with what their rows say about their origin. Nothing is
converted and no mesh is opened here: shapes have a content hash at once, files get theirs where they are converted (`content`).
"""

from pipelines.preprocess.sources.listing import Listing
from pipelines.preprocess.sources.objects import SourceObject, inputs_hash

__all__ = ["Listing", "SourceObject", "inputs_hash"]
