"""`--probe`: how long a training sample of each size takes on this device, for plans.

How: up to STEPS steps of each size are trained by `g3pt.training.fit`, in this process and on one device, until
LIMIT_S seconds have passed; nothing is kept of them. The batches are those of the dataset if it is encoded, else of
random codes. The first record's steps are not counted: they wait for kernels and memory. The result, STUDY/probe.json,
has the median of the other records. A plan uses a size's seconds while model, batch and precision are those of the
probe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from g3pt.config import CARConfig, TrainConfig, from_dict
from pipelines.cli.errors import UsageError
from pipelines.cli.progress import say
from pipelines.runs.environment import environment
from pipelines.runs.identity import RunSpec, stable_hash
from pipelines.study.accounts import Rate, stated_rate
from pipelines.study.config import SweepFlags
from pipelines.study.placement import place
from pipelines.study.plan import Row
from pipelines.train.devices import Devices
from pipelines.train.memory import gpu_bytes

FILE = "probe.json"
STEPS, RECORD = 100, 5  # steps at most; steps per record
LIMIT_S = 60.0  # per size
UNTIMED = {"checkpoint_layers", "text_revision", "image_revision"}  # fields that a sample's time does not depend on
Batches = Callable[[int], Iterator[dict[str, Any]]]


def probe(rows: Sequence[Row], spec_of: Callable[[Row], RunSpec] | None, codec: Any, flags: SweepFlags) -> Path:
    """Measure each size of `rows` and write probe.json below --output; returns its path. Without `spec_of`, which makes
    a run's spec on an encoded dataset, the codes are random.
    """
    from g3pt.training.exports import write_json

    sizes: dict[str, Any] = {}
    for row in {row.size: row for row in reversed(rows)}.values():  # smallest first
        try:
            way = place(row.model, row.train, codec, one_device(flags), workers=1, micro_batch=flags.micro_batch)
        except UsageError as error:
            say(f"  {row.size}: not measured: {error}")
            continue
        model = dataclasses.replace(row.model, checkpoint_layers=way.recompute)
        row = dataclasses.replace(row, model=model)
        trained, batches = real(spec_of(row)) if spec_of else random(row, codec)
        found = seconds_per_sample(trained, batches, row, way.micro_batch, device_name(flags)[0])
        sizes[row.size] = found | {"key": key_of(row.model, row.train), "micro_batch": way.micro_batch}
        say(f"  {row.size}: {found['seconds_per_sample']:.3g} s per sample over {found['steps']} steps")
    if not sizes:
        raise UsageError("--probe: no size fits this device")
    file = Path(flags.output) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    batches_of = "the dataset" if spec_of else "random codes"
    about = {"device": device_name(flags)[1], "batches": batches_of, "code": environment()["git_commit"]}
    write_json(file, about | {"sizes": sizes})
    return file


def measured(output: str, rows: Sequence[Row]) -> tuple[dict[str, float], str]:
    """(seconds of a training sample of each size that was probed as it is planned, the device); nothing without a
    probe.
    """
    found = _read(output)
    if found is None:
        return {}, ""
    keys = {row.size: key_of(row.model, row.train) for row in rows}
    sizes = {name: one for name, one in found["sizes"].items() if keys.get(name) == one["key"]}
    return {name: float(one["seconds_per_sample"]) for name, one in sizes.items()}, str(found["device"])


def planned_rate(output: str, flops_per_s: float | None) -> Rate:
    """Planned seconds of a sample of a run on its workers: as measured by a probe below `output`, else at `flops_per_s`
    operations per second and worker.
    """
    stated, found = stated_rate(flops_per_s), _read(output)
    measured_s = {one["key"]: float(one["seconds_per_sample"]) for one in found["sizes"].values()} if found else {}

    def rate(spec: RunSpec) -> float | None:
        model, train = from_dict(CARConfig, spec.config["model"]), from_dict(TrainConfig, spec.config["train"])
        alone = measured_s.get(key_of(model, train), stated(spec))
        workers = max(1, spec.config.get("computed", {}).get("workers", 1))
        return None if alone is None else alone / workers

    return rate


def _read(output: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads((Path(output) / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def key_of(model: CARConfig, train: TrainConfig) -> str:
    """A hash of what the time of a sample depends on."""
    from g3pt.models.encoders import EXPORTED, SMALL, text_is_small

    values = {k: v for k, v in dataclasses.asdict(model).items() if k not in UNTIMED}
    if model.text_encoder != SMALL and text_is_small(model.text_encoder):
        values["text_encoder"] = EXPORTED  # wherever its folder is
    return stable_hash({"model": values, "batch_size": train.batch_size, "precision": train.precision})[:16]


def seconds_per_sample(model: Any, batches: Batches, row: Row, micro_batch: int, device: str) -> dict[str, Any]:
    """`seconds_per_sample` and the `steps` that were taken."""
    from g3pt.training.fit import AskedToStop, fit

    records: list[dict[str, float]] = []
    config = dataclasses.replace(
        row.train, steps=STEPS, schedule="cosine", warmup_samples=None, warmup_share=0.0,
        log_every=RECORD, eval_every=STEPS, checkpoint_every=STEPS,
    )  # fmt: skip
    until = time.monotonic() + LIMIT_S
    with contextlib.suppress(AskedToStop):
        fit(
            model=model, batches=batches, config=config, report=records.append, device=device, micro_batch=micro_batch,
            stop=lambda: len(records) >= 2 and time.monotonic() > until,
        )  # fmt: skip
    rates = [record["samples_per_second"] for record in records[1:]]
    return {"seconds_per_sample": 1 / statistics.median(rates), "steps": round(records[-1]["step"] / config.batch_size)}


def real(spec: RunSpec) -> tuple[Any, Batches]:
    """The model and the batches of a run."""
    from pipelines.train.stages import build_stage

    stage = build_stage(spec)
    return stage.model, stage.batches


def random(row: Row, codec: Any) -> tuple[Any, Batches]:
    """A model with a tokenizer of random weights, and one batch of random codes that is repeated."""
    import torch

    from g3pt.models.tokenizer import CVQ
    from pipelines.train.memory import car_step

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch_of = car_step(row.model, codec, CVQ(codec))
        batch = batch_of(row.train.batch_size)
        batch["codes_BS"] = torch.randint(codec.num_codes, batch["codes_BS"].shape)
    return model, lambda _: itertools.repeat(batch)


def is_encoded(data: str, tokenizer: str) -> bool:
    """Whether the dataset's codes by the tokenizer exist."""
    from g3pt.data.datasets import open_dataset
    from pipelines.derive.tables import to_do
    from pipelines.derive.tokens import tokens_kind

    try:
        return not to_do(open_dataset(data), [tokens_kind(tokenizer)])
    except (OSError, ValueError, KeyError):
        return False


def one_device(flags: SweepFlags) -> Devices:
    """This machine's device."""
    return Devices(count=1, per_node=1, memory=gpu_bytes(flags))


def device_name(flags: SweepFlags) -> tuple[str, str]:
    """(the device for torch, its name)."""
    import torch

    if flags.device != "cpu" and torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    return "cpu", f"one core of {environment()['cpu']}"
