"""A stage of a few parameters that trains in milliseconds, for tests of the code around `fit`."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from g3pt.config import FORMAT_VERSION, TrainConfig, from_dict
from pipelines.runs.identity import RunSpec
from pipelines.train.feed import FEED, Feed


class ToyModel(nn.Module):
    """y = A x + b with dropout, so that the random state of each step matters."""

    def __init__(self, width: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(width, width)
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x_BD = nn.functional.dropout(batch["x_BD"], self.dropout)
        loss = (self.linear(x_BD) - batch["x_BD"].flip(1)).square().mean()
        return loss, {"mse": loss.detach()}


class ToyStage:
    """config["toy"] has width and, optionally: dropout (0 if numbers of workers are compared, since each worker draws
    its own), sleep_s per step, fail_at (the sample that raises an error), and term_at and kill_at (samples at which the
    process gets SIGTERM or SIGKILL, once each).
    """

    def __init__(self, spec: RunSpec, rank: int, world_size: int) -> None:
        self.toy, self.rank, self.world_size = spec.config["toy"], rank, world_size
        self.train_config = from_dict(TrainConfig, spec.config["train"])
        self.model = ToyModel(self.toy["width"], self.toy.get("dropout", 0.2))
        self.paths = spec.paths

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        size = self.train_config.batch_size
        while True:
            for name, number in (("term_at", signal.SIGTERM), ("kill_at", signal.SIGKILL)):
                if start_sample == self.toy.get(name):
                    self._signal_once(name, number)
            if start_sample == self.toy.get("fail_at"):
                with open(self.paths["failures"], "a") as file:
                    file.write("failed\n")
                raise ValueError(f"sample {start_sample}\nis bad")
            time.sleep(self.toy.get("sleep_s", 0))
            samples = range(start_sample + self.rank, start_sample + size, self.world_size)
            rows = [torch.rand(self.toy["width"], generator=torch.Generator().manual_seed(s)) for s in samples]
            yield {"x_BD": torch.stack(rows)}
            start_sample += size

    def _signal_once(self, name: str, number: int) -> None:
        mark = Path(self.paths.get("mark", "/nonexistent/mark")).with_suffix(f".{name}")
        if mark.parent.exists() and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
            time.sleep(0.5)  # until the main thread has heard it

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"val_loss": float(model.linear.bias.detach().square().sum())}

    def evaluate_raw(self, model: nn.Module) -> dict[str, float]:
        return {"val_loss_raw": self.evaluate(model)["val_loss"]}

    def best_by(self, record: Mapping[str, float]) -> float | None:
        return record.get("val_loss")

    def object_losses(self) -> dict[str, Any]:
        return {}

    def final(self, model: nn.Module) -> dict[str, float]:
        return {"test_ce": 2.0 + 10.0 / self.toy["width"]}

    def export(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(dict(model.state_dict()), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"kind": "toy", "format_version": FORMAT_VERSION}))


def build_stage(spec: RunSpec, rank: int = 0, world_size: int = 1, feed: Feed = FEED) -> ToyStage:
    return ToyStage(spec, rank, world_size)
