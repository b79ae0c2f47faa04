"""The generator's training run: stored codes, captions and views of a dataset, conditioned batches, cross-entropies.

Order and views follow from (seed, sample number) alone, as in `g3pt.batches`. What teacher forcing feeds the transformer
depends on the codes only, so it is computed once an object, where it fits the memory set aside for it.

Ours: validation and test read the text and no image, so that data sets with and without views compare; the
cross-entropies given an image alone, and given nothing, stand beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from g3pt import datasets, reading
from g3pt.batches import batch_indices
from g3pt.captions import shorten
from g3pt.car import G3PT
from g3pt.checkpoint import export_hash
from g3pt.conditions import NONE, SMALL
from g3pt.config import CARConfig, TrainConfig, from_dict
from g3pt.pictures import prepare_image
from g3pt.selection import Selection
from g3pt.tokenizer import CVQ
from pipelines import tokens, trained_on

if TYPE_CHECKING:
    from pipelines.runs import RunSpec

EVAL_BATCH = 32
EVAL_OBJECTS = 256  # validation objects read while training
CACHE_BYTES = 512 * 2**20  # of aligned inputs, and again of prepared views


class CARStage:
    """CAR over one dataset and one tokenizer; see `pipelines.stages.Stage`. `spec.config` has model, train, dataset, tokenizer."""

    def __init__(self, spec: RunSpec, rank: int = 0, world_size: int = 1) -> None:
        self.spec, self.rank, self.world_size = spec, rank, world_size
        self.train_config: TrainConfig = from_dict(TrainConfig, spec.config["train"])
        self.info = datasets.open_dataset(spec.paths["data"])
        config = self._model_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train_config.seed)
            self.model = G3PT(config, CVQ.from_pretrained(spec.paths["tokenizer"]))
        self.codes = tokens.load_codes(self.info, tokens.tokens_kind(spec.paths["tokenizer"]))
        self._splits: dict[str, ConditionedCodes] = {}
        if not len(self._split("train")):
            raise ValueError(f"{spec.paths['data']}: its train split has no object with status ok and an allowed licence")

    def _model_config(self) -> CARConfig:
        """The preset's, without an image encoder to train where the dataset has no views."""
        config: CARConfig = from_dict(CARConfig, self.spec.config["model"])
        if config.image_encoder == SMALL and not self.info.config.num_views:
            return dataclasses.replace(config, image_encoder=NONE)
        return config

    def _split(self, split: str) -> ConditionedCodes:
        if split not in self._splits:
            columns = ["id", "caption"] + ["views"] * bool(self.info.config.num_views)
            arrays = reading.load_arrays(self.info, split, columns, selection=Selection.of(self.spec.config))
            self._splits[split] = ConditionedCodes(self.model, arrays, self.codes)
        return self._splits[split]

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """Batches from a sample on, without end."""
        data, train = self._split("train"), self.train_config
        for samples, indices in batch_indices(
            len(data), train.batch_size, train.seed, start_sample, self.rank, self.world_size
        ):
            views = [int(np.random.default_rng([train.seed, int(s)]).integers(2**31)) for s in samples]
            shortened = [self._shortening(int(s)) for s in samples] if self.model.config.drop_phrases else None
            yield data.batch(indices.tolist(), views, shortened)

    def _shortening(self, sample: int) -> np.random.Generator | None:
        """What decides which attributes a sample's caption keeps; None where it keeps all."""
        random = np.random.default_rng([self.train_config.seed, sample, 1])  # 1: not the stream that chooses its view
        return random if random.random() < self.model.config.drop_phrases else None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropies over the first validation objects, in nats a token, prefixed `val_`."""
        return self._cross_entropies(model, "val", EVAL_OBJECTS)

    def final(self, model: nn.Module) -> dict[str, float]:
        """The same over all test objects, prefixed `test_`."""
        return self._cross_entropies(model, "test", None)

    def _cross_entropies(self, model: nn.Module, split: str, limit: int | None) -> dict[str, float]:
        data = self._split(split)
        count = len(data) if limit is None else min(limit, len(data))
        if not count:
            return {}
        model.eval()
        given = {"": (True, False), "_unconditional": (False, False)}
        if self.model.image is not None:
            given["_image"] = (False, True)
        found: dict[str, float] = {f"{split}_objects": float(count)}
        for name, (text, image) in given.items():
            logs = cross_entropies(model, data, count, text, image)
            kept = {key: value for key, value in logs.items() if not name or key == "ce"}
            found |= {f"{split}_{key}{name}": value for key, value in kept.items()}
        return found

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model with its tokenizer, and the ids, licences and authors that both were trained on."""
        assert isinstance(model, G3PT)
        tokenizer = self.spec.paths["tokenizer"]
        extra = {
            "trained_on": trained_on.note(trained_on.collect(self.spec), folder),
            "run": self.spec.config,
            "flops_per_object": model.car.flops_per_object,
            "tokenizer_hash": export_hash(tokenizer),
            # it is embedded, so are its debts
            "tokenizer_trained_on": trained_on.note(trained_on.read(tokenizer), folder, "tokenizer_trained_on"),
        }
        model.save_pretrained(folder, extra=extra)


@torch.no_grad()
def cross_entropies(model: nn.Module, data: ConditionedCodes, count: int, text: bool, image: bool) -> dict[str, float]:
    """Means over the first `count` objects, with these conditions where an object has them."""
    device, sums = next(model.parameters()).device, {}
    for start in range(0, count, EVAL_BATCH):
        indices = list(range(start, min(start + EVAL_BATCH, count)))
        batch = data.batch(indices, [0] * len(indices))
        batch["has_text_B"] &= text
        if "has_image_B" in batch:
            batch["has_image_B"] &= image
        _, logs = model({name: value.to(device) for name, value in batch.items()})
        for name, value in logs.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(indices)
    return {name: value / count for name, value in sums.items()}


class ConditionedCodes:
    """One split in memory: codes, captions and views, as the batches that `G3PT.forward` reads."""

    def __init__(self, model: G3PT, arrays: dict[str, Any], codes: dict[str, np.ndarray]) -> None:
        self.captions: list[str] = arrays["caption"]
        self.views: list[list[bytes]] = arrays.get("views") or [[] for _ in self.captions]
        stacked = np.stack([codes[i] for i in arrays["id"]]) if arrays["id"] else np.zeros((0, sum(model.scales)))
        self.codes_NS = torch.from_numpy(stacked.astype(np.int64))
        self.text_tokenizer, self.image_size = model.text.tokenizer, model.config.image_size
        self.reads_images = model.image is not None
        self.aligned_NTA = self._aligned(model)
        self._prepared: dict[tuple[int, int], Tensor] = {}
        self._max_prepared = CACHE_BYTES // (12 * self.image_size**2)

    def __len__(self) -> int:
        return len(self.captions)

    def _aligned(self, model: G3PT) -> Tensor | None:
        """All teacher-forcing inputs, or None where they would not fit (or are noisy, so made anew each time)."""
        size = 4 * self.codes_NS.numel() * model.tokenizer.config.width
        if size > CACHE_BYTES or not len(self) or model.config.noisy_inputs:
            return None
        return torch.cat([model.aligned_inputs(part).float() for part in self.codes_NS.split(EVAL_BATCH)])

    def batch(self, indices: list[int], views: list[int], shortened: Sequence[np.random.Generator | None] | None = None) -> dict[str, Tensor]:
        """Objects by index; `views` are numbers that choose among an object's views, `shortened` what shortens their captions."""
        texts = [self.captions[i] or "" for i in indices]
        if shortened is not None:
            texts = [text if random is None else shorten(text, random) for text, random in zip(texts, shortened, strict=True)]
        ids_BM, mask_BM = self.text_tokenizer(texts, cut=True)
        batch = {
            "codes_BS": self.codes_NS[indices],
            "text_BM": ids_BM,
            "text_mask_BM": mask_BM,
            "has_text_B": torch.tensor([bool(text) for text in texts]),
        }
        if self.aligned_NTA is not None:
            batch["aligned_BTA"] = self.aligned_NTA[indices]
        if self.reads_images:
            batch["images_B3HW"] = torch.stack([self._image(i, v) for i, v in zip(indices, views, strict=True)])
            batch["has_image_B"] = torch.tensor([len(self.views[i]) > 0 for i in indices])
        return batch

    def _image(self, index: int, choice: int) -> Tensor:
        if not len(self.views[index]):
            return torch.zeros(3, self.image_size, self.image_size)
        view = choice % len(self.views[index])
        if (index, view) not in self._prepared:
            if len(self._prepared) >= self._max_prepared:
                return prepare_image(self.views[index][view], self.image_size)
            self._prepared[index, view] = prepare_image(self.views[index][view], self.image_size)
        return self._prepared[index, view]
