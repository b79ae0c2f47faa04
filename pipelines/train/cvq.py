"""The tokenizer's training run: surfaces and occupancies of a dataset, diagnostics per scale, an export with its
training objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from g3pt.config import CVQConfig, TrainConfig, from_dict
from g3pt.data import datasets, reading
from g3pt.data.batches import SurfaceBatches
from g3pt.data.selection import Selection
from g3pt.data.streaming import Reading, training_objects
from g3pt.models.diagnostics import EVAL_BATCH, diagnose, validation_loss
from g3pt.models.tokenizer import CVQ
from g3pt.training.sharing import Shared
from pipelines.train import trained_on
from pipelines.train.feed import FEED, Feed, fed
from pipelines.train.node_cache import node_cache

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec

TRAIN_COLUMNS = ("surface", "near_points", "volume_points", "near_occupancy", "volume_occupancy")
EVAL_COLUMNS = ("surface", "eval_surface", "volume_points", "volume_occupancy", "thickness")
EVAL_OBJECTS = 128  # validation objects for the diagnostics during training


class CVQStage:
    """CVQ over one dataset; see `pipelines.train.stages.Stage`.

    `spec.config` has model, train, dataset and the selection.
    """

    def __init__(self, spec: RunSpec, rank: int, world_size: int, feed: Feed = FEED) -> None:
        self.spec = spec
        self.config: CVQConfig = from_dict(CVQConfig, spec.config["model"])
        self.train_config: TrainConfig = from_dict(TrainConfig, spec.config["train"])
        self.model = CVQ(self.config, seed=self.train_config.seed)
        wanted = Reading(
            dataset=datasets.open_dataset(spec.paths["data"]),
            columns=self._columns(TRAIN_COLUMNS),
            selection=Selection.of(spec.config),
        )
        cache = node_cache(wanted, feed.cache, rank)
        objects = training_objects(wanted, cache)
        self.feed = feed.over(objects, cache)
        num_objects = len(objects["surface"] if isinstance(objects, dict) else objects)
        if not num_objects:
            raise ValueError(
                f"{spec.paths['data']}: its train split has no object with status ok and an allowed licence"
            )
        self.model.usage.num_objects = num_objects
        self._batches = SurfaceBatches(
            objects, self.config, self.train_config.batch_size, self.train_config.seed, rank, world_size
        )
        self._held: dict[str, tuple[Shared, dict[str, Any]]] = {}

    def _columns(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return columns + ("sharp",) * bool(self.config.num_sharp_points)

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """Endless batches from sample number `start_sample` on."""
        return fed(self._batches, start_sample, self.feed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Diagnostics over EVAL_OBJECTS validation objects, prefixed `val_`."""
        return self._diagnose(model, "val", EVAL_OBJECTS)

    def evaluate_raw(self, model: nn.Module) -> dict[str, float]:
        """`val_loss_volume` of weights that are not averaged, as `val_loss_volume_raw`."""
        assert isinstance(model, CVQ)
        shared, arrays = self._objects("val", EVAL_OBJECTS)
        device = next(model.parameters()).device
        return {"val_loss_volume_raw": validation_loss(model, arrays, device, shared)} if shared.count else {}

    def best_by(self, record: Mapping[str, float]) -> float | None:
        """Its `val_loss_volume` in the last phase: before it, the decoder is not trained on codes."""
        return record.get("val_loss_volume") if self.model.phase == "joint" else None

    def final(self, model: nn.Module) -> dict[str, float]:
        """The same over `test_objects` test objects, prefixed `test_`."""
        return self._diagnose(model, "test", self.train_config.test_objects)

    def object_losses(self) -> dict[str, Any]:
        """None: `jobs/evaluate.py` measures a tokenizer's objects."""
        return {}

    def _diagnose(self, model: nn.Module, split: str, limit: int) -> dict[str, float]:
        shared, arrays = self._objects(split, limit)
        if not shared.count:
            return {}
        assert isinstance(model, CVQ)
        device = next(model.parameters()).device
        return {f"{split}_{name}": value for name, value in diagnose(model, arrays, device, shared).items()}

    def _objects(self, split: str, limit: int) -> tuple[Shared, dict[str, Any]]:
        """The `limit` objects of a validation or test split with the smallest sha256(id): how the workers share them,
        and this worker's, read once.
        """
        if split not in self._held:
            info = datasets.open_dataset(self.spec.paths["data"])
            ids = reading.smallest_ids(info, split, limit, Selection.of(self.spec.config))
            shared = Shared.between_workers(len(ids), EVAL_BATCH)
            mine = [ids[i] for i in shared.objects()]
            self._held[split] = shared, reading.load_arrays(info, split, self._columns(EVAL_COLUMNS), ids=mine)
        return self._held[split]

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model and the ids, licences and authors of its training objects."""
        assert isinstance(model, CVQ)
        model.save_pretrained(
            folder,
            extra={"trained_on": trained_on.note(trained_on.collect(self.spec), folder), "run": self.spec.config},
        )
