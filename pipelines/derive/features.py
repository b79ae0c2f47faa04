"""Condition features or pictures of a whole dataset, computed once: training with `--features stored` or `pictures`
calls `store_features` first.

Each worker of a pool loads the encoders once and writes shard after shard (`pipelines.derive.tables`); finished shards
are skipped. `g3pt.models.features` describes the tables and where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from g3pt.data import datasets
from g3pt.data.derived import derived_path
from g3pt.data.records import shard_name
from g3pt.models import features
from g3pt.models.features import Encoding
from pipelines.cli.errors import bad_input
from pipelines.cli.failures import doing, remedied
from pipelines.cluster import session
from pipelines.cluster.pool import Pool
from pipelines.derive.tables import WITHOUT_GPU, derive, is_done, made


def store_features(data: str, encodings: Sequence[Encoding], pool: Pool) -> dict[str, str]:
    """Compute the features of every ok object by these encoders; return condition -> derived kind."""
    with bad_input():
        info = datasets.open_dataset(data)
    kinds = {one.condition: one.kind for one in encodings}
    missing = [one for one in encodings if not all(is_done(info, [one.kind], index) for index in info.shards)]
    derive(info, list(kinds.values()), FeatureWorker, (str(info.path), missing), "features", pool)
    return kinds


class FeatureWorker:
    """A worker with pretrained encoders."""

    def __init__(self, data: str, encodings: Sequence[Encoding]) -> None:
        import torch

        torch.set_num_threads(1)
        self.info = datasets.open_dataset(data)
        self.encoders: list[tuple[Encoding, Any]] = [(one, one.load().to(session.torch_device())) for one in encodings]

    def run(self, index: int) -> dict[str, Any]:
        """Write the missing tables of one shard; return `made`."""
        count = 0
        for encoding, encoder in self.encoders:
            what = f"{shard_name(index)} of {self.info.path} as {encoding.condition} {encoding.encoder}".strip()
            with doing(f"encoding {what}"), remedied(lambda: WITHOUT_GPU):
                if not is_done(self.info, [encoding.kind], index):
                    count = features.write_shard(encoding, encoder, self.info, index)
        return made(count, [derived_path(self.info, encoding.kind, index) for encoding, _ in self.encoders])
