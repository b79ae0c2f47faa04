"""A tokenizer of a few thousand parameters on made balls, which kills its own process at given samples, each once."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from g3pt.config import CVQConfig, TrainConfig, from_dict
from g3pt.data.batches import SurfaceBatches
from g3pt.models.tokenizer import CVQ
from pipelines.runs.identity import RunSpec
from pipelines.train.feed import FEED, Feed
from tests.g3pt.models.test_tokenizer import spheres


class TinyCVQStage:
    """See `pipelines.train.stages.Stage`.

    `spec.paths` may have `marks`, a folder, and `kill_at`, samples separated by commas.
    """

    def __init__(self, spec: RunSpec, rank: int = 0, world_size: int = 1) -> None:
        self.train_config: TrainConfig = from_dict(TrainConfig, spec.config["train"])
        config: CVQConfig = from_dict(CVQConfig, spec.config["model"])
        self.model = CVQ(config)
        self._batches = SurfaceBatches(spheres(8), config, self.train_config.batch_size, 0, rank, world_size)
        self.paths = spec.paths

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(self._batches(start_sample)):
            self._maybe_die(start_sample + number * self.train_config.batch_size)
            yield batch

    def _maybe_die(self, sample: int) -> None:
        mark = Path(self.paths.get("marks", "/nonexistent")) / str(sample)
        if str(sample) in self.paths.get("kill_at", "").split(",") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"val_norm": sum(float(p.detach().square().sum()) for p in model.parameters())}

    def evaluate_raw(self, model: nn.Module) -> dict[str, float]:
        return {"val_norm_raw": self.evaluate(model)["val_norm"]}

    def best_by(self, record: Mapping[str, float]) -> float | None:
        """The first evaluation of the last phase is the best, as norms fall."""
        return -record["val_norm"] if self.model.phase == "joint" and "val_norm" in record else None

    def object_losses(self) -> dict[str, Any]:
        return {}

    def final(self, model: nn.Module) -> dict[str, float]:
        return {f"test_{name[4:]}": value for name, value in self.evaluate(model).items()}

    def export(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, CVQ)
        model.save_pretrained(folder)


def build_stage(spec: RunSpec, rank: int = 0, world_size: int = 1, feed: Feed = FEED) -> TinyCVQStage:
    return TinyCVQStage(spec, rank, world_size)
