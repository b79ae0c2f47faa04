"""The generator's batches: codes, captions and views of objects, in memory or streamed shard by shard.

An object is a row with `id`, `codes`, `caption` and `views`; with stored encoder features (`g3pt.models.features`) it
has `text` and `num_views` instead. The order, and the view of an object, follow from (seed, sample number) alone
(`g3pt.data.batches`; `g3pt.data.streaming` if the train split is larger than its IN_MEMORY_BYTES), so a resumed run
gets the same batches.

In memory, the inputs of teacher forcing and the prepared views are kept between epochs, within CACHE_BYTES each.
Shapes: B batch, N objects of the split, S tokens of all scales, T tokens of scales 2, 3, ..., A width of the
tokenizer's aligned tokens, M words of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g3pt.config import TrainConfig
from g3pt.data.batches import batch_indices
from g3pt.data.cache import Source
from g3pt.data.captions import shorten
from g3pt.data.datasets import DatasetInfo
from g3pt.data.pictures import normalised, prepare_image
from g3pt.data.selection import Selection
from g3pt.data.streaming import Joined, Reading, ShardedObjects, training_objects
from g3pt.models.car import G3PT
from g3pt.models.features import PICTURES, StoredFeatures, view_column
from pipelines.derive import tokens
from pipelines.train.feed import FEED, Feed
from pipelines.train.node_cache import node_cache

CACHE_BYTES = 512 * 2**20  # for aligned inputs, and the same for prepared views
ALIGN_BATCH = 32
Row = dict[str, Any]
Shortened = Sequence[np.random.Generator | None]  # None for a caption that is kept whole


def columns(info: DatasetInfo, stored: StoredFeatures | None = None) -> list[str]:
    """The columns read from the dataset, beside codes and stored features."""
    return ["id", "caption"] + ["views"] * (info.config.num_views > 0 and not (stored and stored.views))


def codes_column(variant: int) -> str:
    """The column of the codes of an object's variant."""
    return f"codes_{variant}" if variant else "codes"


def joined_codes(
    info: DatasetInfo, kind: str, num_tokens: int, stored: StoredFeatures | None = None, variants: int = 1
) -> Joined:
    """The derived codes as one more column, uint16 (N, S), one more per variant, and stored condition features.

    Features do not count for the size, so that streaming and order do not depend on whether they are stored or
    computed.
    """

    kinds = {codes_column(variant): tokens.variant_kind(kind, variant) for variant in range(variants)}

    def join(arrays: dict[str, Any], shards: Sequence[int]) -> dict[str, Any]:
        conditions = stored.columns(arrays["id"], shards) if stored else {}
        codes = {column: _codes(info, one, arrays["id"], shards, num_tokens) for column, one in kinds.items()}
        return arrays | codes | conditions

    sources = {column: Source("codes", one) for column, one in kinds.items()} | _condition_sources(info, stored)
    return Joined(num_bytes=2 * num_tokens * variants, join=join, sources=sources)


def _codes(info: DatasetInfo, kind: str, ids: Sequence[str], shards: Sequence[int], num_tokens: int) -> np.ndarray:
    """Codes (N, S) of objects in `shards`."""
    if not len(ids):
        return np.zeros((0, num_tokens), np.uint16)
    codes = tokens.load_codes(info, kind, shards)
    return np.stack([codes[name] for name in ids])


def _condition_sources(info: DatasetInfo, stored: StoredFeatures | None) -> dict[str, Source]:
    """Where a cache copies stored conditions from; of stored pictures, one column per view."""
    kinds, found = stored.kinds if stored else {}, dict[str, Source]()
    if "text" in kinds:
        found["text"] = Source("text", kinds["text"])
    if stored and stored.views:
        names = ["num_views", *(view_column(view) for view in range(info.config.num_views))]
        found |= {name: Source(name, stored.views) for name in names}
    return found


class Collate:
    """Makes the batches of `G3PT.forward` from rows."""

    def __init__(self, model: G3PT, stored: StoredFeatures | None = None) -> None:
        self.stored = stored.again() if stored else None
        kinds = stored.kinds if stored else {}
        self.text_tokenizer = None if "text" in kinds else model.text.tokenizer
        self.image_size, self.reads_images = model.config.image_size, model.image is not None
        self.stored_images, self.stored_pictures = "image" in kinds, PICTURES in kinds

    def __call__(
        self,
        rows: Sequence[Row],
        choices: Sequence[int],
        shortened: Shortened | None = None,
        images: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The batch of these rows.

        `choices` has a number per row that selects one of its views, `shortened` the random generator that shortens its
        caption, `images` the selected views if they are prepared already.
        """
        texts = [row["caption"] or "" for row in rows]
        if shortened is not None:
            texts = [
                text if random is None else shorten(text, random) for text, random in zip(texts, shortened, strict=True)
            ]
        batch = {
            "codes_BS": torch.from_numpy(np.stack([row["codes"] for row in rows]).astype(np.int64)),
            "has_text_B": torch.tensor([bool(text) for text in texts]),
        }
        if self.text_tokenizer is None:
            batch["text_BC"] = torch.from_numpy(np.stack([row["text"] for row in rows]))
        else:
            batch["text_BM"], batch["text_mask_BM"] = self.text_tokenizer(texts, cut=True)
        if self.reads_images:
            name = "image_BMC" if self.stored_images else "images_B3HW"
            batch[name] = torch.stack(
                images or [self.image(row, choice) for row, choice in zip(rows, choices, strict=True)]
            )
            batch["has_image_B"] = torch.tensor([num_views(row) > 0 for row in rows])
        return batch

    def image(self, row: Row, choice: int) -> Tensor:
        """The selected view as the encoder's input, or its stored features; zeros for an object without views."""
        if self.stored_images:
            return self._stored_view(row, choice)
        if self.stored_pictures and num_views(row):
            return normalised(self._stored_view(row, choice))
        views = row.get("views") or ()
        if not len(views):
            return torch.zeros(3, self.image_size, self.image_size)
        try:
            return prepare_image(views[choice % len(views)], self.image_size)
        except ValueError as error:
            raise ValueError(f"view {choice % len(views)} of {row['id']!r}: {error}") from error

    def _stored_view(self, row: Row, choice: int) -> Tensor:
        """The selected view of a table, from the cache if the row has it."""
        assert self.stored is not None
        view = choice % max(1, num_views(row))
        cached = row.get(view_column(view))
        return torch.from_numpy(self.stored.image(row["id"], view) if cached is None else cached.copy())


def num_views(row: Row) -> int:
    """Number of views of an object."""
    return int(row["num_views"]) if "num_views" in row else len(row.get("views") or ())


class ConditionedCodes:
    """One split in memory. `arrays` has `id`, `caption`, `codes` and, if the dataset has them, `views`."""

    def __init__(self, model: G3PT, arrays: dict[str, Any], stored: StoredFeatures | None = None) -> None:
        self.arrays, self.collate = arrays, Collate(model, stored)
        self.aligned_NTA = self._aligned(model)
        self._prepared: dict[tuple[int, int], Tensor] = {}
        self._max_prepared = 0 if stored and stored.views else CACHE_BYTES // (12 * model.config.image_size**2)

    def __len__(self) -> int:
        return len(self.arrays["caption"])

    def _aligned(self, model: G3PT) -> Tensor | None:
        """All teacher-forcing inputs; None if they do not fit in CACHE_BYTES or objects have variants."""
        if codes_column(1) in self.arrays:
            return None
        size = 4 * len(self) * sum(model.scales) * model.tokenizer.config.width
        if size > CACHE_BYTES or not len(self):
            return None
        codes_NS = torch.from_numpy(np.stack(self.arrays["codes"]).astype(np.int64))
        return torch.cat([model.aligned_inputs(part).float() for part in codes_NS.split(ALIGN_BATCH)])

    def rows(self, indices: Sequence[int]) -> list[Row]:
        """Objects by index."""
        return [{name: values[i] for name, values in self.arrays.items()} for i in indices]

    def batch(
        self,
        indices: list[int],
        choices: Sequence[int],
        shortened: Shortened | None = None,
        variants: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The batch of the objects with these indices, or of variants of them; `choices` and `shortened` as in
        `Collate`.
        """
        rows = of_variants(self.rows(indices), variants)
        images = (
            [self._image(*one) for one in zip(indices, rows, choices, strict=True)]
            if self.collate.reads_images
            else None
        )
        batch = self.collate(rows, choices, shortened, images)
        if self.aligned_NTA is not None:
            batch["aligned_BTA"] = self.aligned_NTA[indices]
        return batch

    def _image(self, index: int, row: Row, choice: int) -> Tensor:
        key = (index, choice % max(1, num_views(row)))
        if key not in self._prepared and len(self._prepared) < self._max_prepared:
            self._prepared[key] = self.collate.image(row, choice)
        return self._prepared[key] if key in self._prepared else self.collate.image(row, choice)


def of_variants(rows: list[Row], variants: Sequence[int] | None) -> list[Row]:
    """The rows with the codes of a variant each."""
    if variants is None:
        return rows
    return [row | {"codes": row[codes_column(variant)]} for row, variant in zip(rows, variants, strict=True)]


class TrainBatches:
    """One worker's batches of the train split, from any sample on."""

    def __init__(
        self,
        model: G3PT,
        info: DatasetInfo,
        kind: str,
        train: TrainConfig,
        selection: Selection,
        rank: int = 0,
        world_size: int = 1,
        stored: StoredFeatures | None = None,
        feed: Feed = FEED,
    ) -> None:
        self.train, self.rank, self.world_size, self.drop_phrases = train, rank, world_size, model.config.drop_phrases
        self.num_variants = model.config.code_variants
        codes = joined_codes(info, kind, sum(model.scales), stored, self.num_variants)
        wanted = Reading(
            dataset=info, columns=columns(info, stored), selection=selection, joined=codes, sized_by=columns(info)
        )
        cache = node_cache(wanted, feed.cache, rank)
        objects = training_objects(wanted, cache)
        self.feed = feed.over(objects, cache)
        self.objects = objects if isinstance(objects, ShardedObjects) else ConditionedCodes(model, objects, stored)
        self.collate = Collate(model, stored)

    def __len__(self) -> int:
        return len(self.objects)

    def __call__(self, start_sample: int, turn: int = 0, turns: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from a sample on, without end. `turn` and `turns` as in `g3pt.data.batches.global_batches`."""
        where = (self.train.batch_size, self.train.seed, start_sample, self.rank, self.world_size, turn, turns)
        if isinstance(self.objects, ShardedObjects):
            for samples, rows in self.objects.rows(*where):
                rows = of_variants(rows, self._variants(samples))
                yield self.collate(rows, self._choices(samples), self._shortened(samples))
            return
        for samples, indices in batch_indices(len(self), *where):
            drawn = self._choices(samples), self._shortened(samples), self._variants(samples)
            yield self.objects.batch(indices.tolist(), *drawn)

    def _choices(self, samples: np.ndarray) -> list[int]:
        """A random number per sample, which selects its view."""
        return [int(np.random.default_rng([self.train.seed, int(sample)]).integers(2**31)) for sample in samples]

    def _variants(self, samples: np.ndarray) -> list[int] | None:
        """The variant of each sample; None if objects have none."""
        if self.num_variants == 1:
            return None
        streams = [np.random.default_rng([self.train.seed, int(sample), 2]) for sample in samples]  # 2: one of its own
        return [int(random.integers(self.num_variants)) for random in streams]

    def _shortened(self, samples: np.ndarray) -> Shortened | None:
        """A random generator for each sample whose caption loses attributes; None for the others, or if no caption
        does.
        """
        if not self.drop_phrases:
            return None
        streams = [
            np.random.default_rng([self.train.seed, int(sample), 1]) for sample in samples
        ]  # 1: another stream than that of the view
        return [random if random.random() < self.drop_phrases else None for random in streams]
