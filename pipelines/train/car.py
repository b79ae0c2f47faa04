"""The generator's training run: batches of stored codes with their conditions (`pipelines.train.car_batches`),
cross-entropies, an export.

Shapes: N objects, K scales.

Ours: validation and test give the text and no image, so that datasets with and without views are comparable. The
cross-entropies given only an image, and given nothing, are recorded beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from g3pt.config import CARConfig, TrainConfig, from_dict
from g3pt.data import datasets, reading
from g3pt.data.records import shard_index
from g3pt.data.selection import Selection
from g3pt.models.car import G3PT
from g3pt.models.encoders import EXPORTED, NONE, SMALL, SMALL_IMAGE, SMALL_TEXT, common_words, exported_text
from g3pt.models.features import StoredFeatures
from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import export_hash
from g3pt.training.sharing import Shared, joined
from g3pt.training.step_records import read_scalars
from pipelines.derive import tokens
from pipelines.train import car_batches, trained_on
from pipelines.train.car_batches import ConditionedCodes, TrainBatches
from pipelines.train.feed import FEED, Feed, fed

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec

EVAL_BATCH = 32
TEXT = (True, False)  # the condition of validation and test: the text, without the image
EVAL_OBJECTS = 256  # validation objects read while training


@dataclasses.dataclass(frozen=True)
class Held:
    """Objects of a validation or test split: the ids of all, how the workers share them, and this worker's."""

    ids: list[str]
    shared: Shared
    data: ConditionedCodes


class CARStage:
    """CAR over one dataset and one tokenizer; see `pipelines.train.stages.Stage`.

    `spec.config` has model, train, dataset, tokenizer.

    `spec.paths` may have `text_features` and `image_features`, derived tables that replace the pretrained encoders, and
    `text_encoder`, the export whose text encoder the model takes.
    """

    def __init__(self, spec: RunSpec, rank: int = 0, world_size: int = 1, feed: Feed = FEED) -> None:
        self.spec = spec
        self.train_config: TrainConfig = from_dict(TrainConfig, spec.config["train"])
        self.info = datasets.open_dataset(spec.paths["data"])
        config = self._model_config()
        kinds = {
            condition: spec.paths[f"{condition}_features"]
            for condition in ("text", "image", "pictures")
            if f"{condition}_features" in spec.paths
        }
        self.stored = StoredFeatures(self.info, kinds) if kinds else None
        self.kind, self.selection = tokens.tokens_kind(spec.paths["tokenizer"]), Selection.of(spec.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train_config.seed)
            self.model = G3PT(
                config,
                CVQ.from_pretrained(spec.paths["tokenizer"]),
                self._small(config),
                self.stored.encoders() if self.stored else None,
            )
        self._take_text_encoder()
        self.train = TrainBatches(
            self.model,
            self.info,
            self.kind,
            self.train_config,
            self.selection,
            rank,
            world_size,
            self.stored,
            feed,
        )
        self._splits: dict[str, Held] = {}
        self._test_ce_NK: Tensor | None = None
        if not len(self.train):
            raise ValueError(
                f"{spec.paths['data']}: its train split has no object with status ok and an allowed licence"
            )

    def _model_config(self) -> CARConfig:
        """The preset's model, without a trainable image encoder if the dataset has no views."""
        config: CARConfig = from_dict(CARConfig, self.spec.config["model"])
        if config.image_encoder == SMALL and not self.info.config.num_views:
            return dataclasses.replace(config, image_encoder=NONE)
        return config

    def _small(self, config: CARConfig) -> dict[str, Any]:
        """Sizes of the small encoders; the vocabulary of the text encoder comes from the training captions."""
        words: list[str] = []
        if config.text_encoder == EXPORTED:
            small, _ = exported_text(self.spec.paths["text_encoder"])
            return {"text": small, "image": SMALL_IMAGE}
        if config.text_encoder == SMALL:
            captions = reading.load_arrays(self.info, "train", ("caption",), selection=self.selection)["caption"]
            words = common_words(caption for caption in captions if caption)
        return {"text": SMALL_TEXT | {"words": words}, "image": SMALL_IMAGE}

    def _take_text_encoder(self) -> None:
        """Copy the text encoder of the export that the configuration names. ValueError if that has changed since."""
        if self.model.config.text_encoder != EXPORTED:
            return
        export = self.spec.paths["text_encoder"]
        if export_hash(export) != self.model.config.text_revision:
            raise ValueError(f"{export}: changed since this run was named; start the command again for a new run")
        self.model.text.load_state_dict(exported_text(export)[1])

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """Endless batches from sample number `start_sample` on."""
        return fed(self.train, start_sample, self.train.feed)

    def _split(self, split: str, limit: int) -> Held:
        """The `limit` objects of a validation or test split with the smallest sha256(id), read once."""
        if split not in self._splits:
            ids = reading.smallest_ids(self.info, split, limit, self.selection)
            shared = Shared.between_workers(len(ids), EVAL_BATCH)
            mine = [ids[i] for i in shared.objects()]
            arrays = reading.load_arrays(self.info, split, car_batches.columns(self.info, self.stored), ids=mine)
            shards = sorted({shard_index(name, self.info.num_shards) for name in mine})
            codes = car_batches.joined_codes(self.info, self.kind, sum(self.model.scales), self.stored)
            data = ConditionedCodes(self.model, codes.join(arrays, shards), self.stored)
            self._splits[split] = Held(ids, shared, data)
        return self._splits[split]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropies over EVAL_OBJECTS validation objects, in nats per token, prefixed `val_`."""
        return self._cross_entropies(model, "val", EVAL_OBJECTS)

    def evaluate_raw(self, model: nn.Module) -> dict[str, float]:
        """`val_ce` of weights that are not averaged, as `val_ce_raw`."""
        held = self._split("val", EVAL_OBJECTS)
        model.eval()
        return {"val_ce_raw": cross_entropies(model, held, {"": TEXT})[""][0]["ce"]} if held.ids else {}

    def best_by(self, record: Mapping[str, float]) -> float | None:
        """Its `val_ce`."""
        return record.get("val_ce")

    def final(self, model: nn.Module) -> dict[str, float]:
        """The same over `test_objects` test objects, prefixed `test_`."""
        return self._cross_entropies(model, "test", self.train_config.test_objects)

    def object_losses(self) -> dict[str, Any]:
        """Cross-entropy of each test object given its text, over all scales and by scale, as `final` found them."""
        if self._test_ce_NK is None:
            return {}
        ids = self._split("test", self.train_config.test_objects).ids
        tokens_K = self._test_ce_NK.new_tensor(self.model.scales)
        by_scale = {f"ce_scale_{k}": ce_N.numpy() for k, ce_N in enumerate(self._test_ce_NK.unbind(1), start=1)}
        return {"id": list(ids), "ce": (self._test_ce_NK @ tokens_K / tokens_K.sum()).numpy(), **by_scale}

    def _cross_entropies(self, model: nn.Module, split: str, limit: int) -> dict[str, float]:
        held = self._split(split, limit)
        if not held.ids:
            return {}
        model.eval()
        given = {"": TEXT, "_unconditional": (False, False)}
        if self.model.image is not None:
            given["_image"] = (False, True)
        found: dict[str, float] = {f"{split}_objects": float(len(held.ids))}
        for name, (logs, ce_NK) in cross_entropies(model, held, given).items():
            if split == "test" and not name:
                self._test_ce_NK = ce_NK
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
            # the tokenizer is embedded in the export, so its training objects are credited too
            "tokenizer_trained_on": trained_on.note(trained_on.read(tokenizer), folder, "tokenizer_trained_on"),
        }
        model.save_pretrained(folder, extra=extra)


@torch.no_grad()
def cross_entropies(
    model: nn.Module, held: Held, given: Mapping[str, tuple[bool, bool]]
) -> dict[str, tuple[dict[str, float], Tensor]]:
    """(means over objects, float32 (N, K) of each object and scale) of the cross-entropy for each of `given`: given
    the objects' text and image as far as these are enabled and exist.

    The workers share the objects; every one must call it and gets all figures.
    """
    device = next(model.parameters()).device

    def losses(part: int) -> list[tuple[dict[str, float], Tensor]]:
        rows, found = list(held.shared.rows(part)), []
        for text, image in given.values():
            batch = held.data.batch(rows, [0] * len(rows))
            batch["has_text_B"] &= text
            if "has_image_B" in batch:
                batch["has_image_B"] &= image
            _, logs = model({name: value.to(device) for name, value in batch.items()})
            ce_BK = logs.pop("ce_BK").float().cpu()
            found.append((dict(zip(logs, read_scalars(list(logs.values())), strict=True)), ce_BK))
        return found

    found: dict[str, tuple[dict[str, float], list[Tensor]]] = {name: ({}, []) for name in given}
    for part in joined(held.shared.in_turn(losses)):
        for (sums, objects), (values, ce_BK) in zip(found.values(), part, strict=True):
            objects.append(ce_BK)
            for key, value in values.items():
                sums[key] = sums.get(key, 0.0) + value * len(ce_BK)
    return {
        name: ({key: value / len(held.ids) for key, value in sums.items()}, torch.cat(objects))
        for name, (sums, objects) in found.items()
    }
