"""The two training commands: flags to a checked `RunSpec`, then `pipelines.train.run.train_run`.

Everything that can be wrong with a command is found here, before Ray starts: an unknown preset, a dataset of another
schema or with too few points, an unfinished tokenizer run. `--dry-run` prints the plan and needs neither data nor
tokenizer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from g3pt.data.selection import ALL, Selection, choose
from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.flags import (
    DryRun,
    OnData,
    OnDevice,
    OnGpus,
    OnRay,
    Replace,
    WithFeatures,
    WithFeed,
    WithRetries,
    WithTokenizer,
    check_feed,
    feed_of,
    listed,
)
from pipelines.cli.main import absolute
from pipelines.cli.overrides import overridden
from pipelines.cli.progress import say
from pipelines.cluster import session
from pipelines.cluster.waiting import asked
from pipelines.runs.identity import RunSpec, stable_hash
from pipelines.tracking.client import best_effort
from pipelines.tracking.models import register
from pipelines.tracking.tracked import WritePage
from pipelines.train.memory import AUTO, gpu_bytes, with_plan


@dataclass(frozen=True, kw_only=True)
class TrainFlags(DryRun, OnGpus, OnRay, OnDevice, WithRetries, WithFeed, OnData, Replace):
    """Flags of both training commands."""

    output: str
    """folder of runs; this run gets its own folder below it"""
    preset: str = "nano"
    """preset of the model; --dry-run prints its size and memory"""
    steps: int | None = None
    """optimiser steps; default the preset's"""
    batch_size: int | None = None
    """objects per step, over all workers; default the preset's"""
    num_workers: int = 1
    """Ray Train workers; each is one process with one CPU or GPU"""
    min_workers: int | None = None
    """start with fewer workers, down to this, if the cluster has no more then; default --num-workers"""
    seed: int = 0
    """seed of initial weights, order of objects, and noise"""
    licenses: str | None = None
    """train only on objects with one of these licences, comma-separated, spelled as in the dataset; open: CC0, public
    domain, CC-BY, MIT, BSD, Apache; default all"""
    exclude_ids: str | None = None
    """leave out objects whose id matches one of these shell patterns, comma-separated (market*,classic*); default none
    """
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """several workers: the whole model on each, or sharded among them"""
    micro_batch: int | Literal["auto"] = "auto"
    """objects per forward pass of a worker; auto: what fits its GPU"""
    gpu_memory: float | None = None
    """GiB of a worker's GPU, for --micro-batch auto; default as found"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each transformer block; auto: on a GPU"""
    init_from: str | None = None
    """start from the weights of this run or export; default random weights"""
    num_to_keep: int = 2
    """number of newest checkpoints to keep"""
    checkpoint_minutes: float | None = None
    """least minutes between two checkpoints; default 10 on a GPU, else 0"""
    register: str | None = None
    """name of a registered model in MLflow of which the finished run becomes a version; default none"""
    set: str | None = None
    """change preset fields, name=value,... (see --dry-run); default none"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_workers", "micro_batch", "num_to_keep"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"--min-workers must be from 1 to --num-workers {self.num_workers}, got {self.min_workers}"
            )
        if self.gpu_memory is not None and self.gpu_memory <= 0:
            raise ValueError(f"--gpu-memory must be positive, got {self.gpu_memory}")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes >= 0:
            raise ValueError(f"--checkpoint-minutes must be at least 0, got {self.checkpoint_minutes}")
        if self.max_failures < 0:
            raise ValueError(f"--max-failures must be at least 0, got {self.max_failures}")
        check_feed(self)


@dataclass(frozen=True, kw_only=True)
class TrainCVQFlags(TrainFlags):
    """Train the tokenizer CVQ: from a point cloud to codes of several scales, and back to occupancy."""


@dataclass(frozen=True, kw_only=True)
class TrainCARFlags(WithFeatures, WithTokenizer, TrainFlags):
    """Train the generator CAR on a tokenizer's codes. The dataset is encoded first if needed."""


def train_cvq(flags: TrainCVQFlags, page: WritePage | None = None) -> str | None:
    """Train CVQ; return the run's folder, or None for a dry run."""
    from g3pt.config import cvq_preset

    return _train("cvq", flags, cvq_preset, partial(cvq_spec, flags.data), page)


def train_car(flags: TrainCARFlags, page: WritePage | None = None) -> str | None:
    """Train CAR; return the run's folder, or None for a dry run."""
    from g3pt.config import car_preset

    return _train("car", flags, car_preset, partial(car_spec, flags.data, flags.tokenizer), page)


def _train(
    stage: str,
    flags: TrainFlags,
    preset: Callable[..., Any],
    make_spec: Callable[..., RunSpec],
    page: WritePage | None,
) -> str | None:
    """The body of both commands. `make_spec` checks the stage's own input."""
    from pipelines.train import run
    from pipelines.train.init_from import started_from
    from pipelines.train.plan import print_plan

    with bad_input():
        model, config = preset(flags.preset)
    model, config = overridden(flags.set, model, _varied(config, flags))
    if flags.dry_run:
        return print_plan(stage, flags, model, config)
    run.check_output(flags.output)
    spec, size = make_spec(flags.preset, model, config, chosen(flags)), gpu_bytes(flags)
    if is_named_by_micro_batch(spec):
        refuse_unknown_gpu(flags, size)
        if flags.min_workers is not None:
            raise UsageError("--min-workers: with LFQ the number of workers changes the weights; leave it out")
    spec = named_by_micro_batch(with_plan(spec, flags, size), flags)
    spec = started_from(spec, flags.init_from)

    def ready(spec: RunSpec) -> RunSpec:
        if size is None and (found := gpu_bytes_of_workers(flags)):
            spec = with_plan(spec, flags, found)
        if stage == "car":
            (spec,) = with_features([spec], flags)
            encode(spec, flags.num_workers, flags.ray_address, flags.device)
        return spec

    speed = run.Speed(
        parallel=flags.parallel,
        num_to_keep=flags.num_to_keep,
        compile=flags.compile,
        checkpoint_minutes=flags.checkpoint_minutes,
        **feed_of(flags),
    )
    workers = {"num_workers": flags.num_workers, "min_workers": flags.min_workers, "device": flags.device}
    run_dir = run.train_run(
        spec,
        absolute(flags.output),
        speed=speed,
        max_failures=flags.max_failures,
        page=page,
        ready=ready,
        replace=flags.replace,
        ray_address=flags.ray_address,
        **workers,
    )
    if flags.register:
        name = flags.register
        best_effort(f"registering {run_dir.name} in MLflow", lambda: register(run_dir.parent, run_dir, name))
    return str(run_dir)


def cvq_spec(data: str, preset: str, model: Any, train: Any, selection: Selection = ALL) -> RunSpec:
    """The identity of a CVQ run. Checks its data."""
    from pipelines.derive.tokens import TRAINS_ON, check_points

    info = open_data(data, selection)
    with bad_input():
        check_points(info, model, names=TRAINS_ON, reader=f"preset {preset}")
    return _spec("cvq", preset, model, train, info, selection)


def car_spec(data: str, tokenizer: str, preset: str, model: Any, train: Any, selection: Selection = ALL) -> RunSpec:
    """The identity of a CAR run. Checks its data and tokenizer."""
    from g3pt.training.exports import export_hash, read_export_config

    info = open_data(data, selection)
    with bad_input():
        kind = read_export_config(tokenizer)["kind"]
        if kind != "cvq":
            raise ValueError(f"{tokenizer}: contains a {kind!r} model; --tokenizer takes a finished CVQ run")
        upstream = export_hash(tokenizer)
        model, text_export = pinned(model)
    spec = _spec(
        "car", preset, model, train, info, selection, tokenizer={"path": absolute(tokenizer), "hash": upstream}
    )
    return dataclasses.replace(spec, paths=spec.paths | text_export)


def encode(spec: RunSpec, num_workers: int, ray_address: str | None = None, device: str = "auto") -> None:
    """Encode the dataset with the run's tokenizer, and the variants that it trains on; finished shards are skipped."""
    from pipelines.derive.tokens import encode_dataset

    encode_dataset(
        spec.paths["data"],
        spec.paths["tokenizer"],
        variants=spec.config.get("model", {}).get("code_variants", 1),
        num_workers=max(1, num_workers),
        ray_address=ray_address,
        device=device,
    )


def pinned(model: Any) -> tuple[Any, dict[str, str]]:
    """The configuration with the commits of its pretrained encoders, since the hub's main branch may move before a run
    is resumed, and the path of the export whose text encoder it takes, as `text_encoder`, if it takes one.

    Such an export is named by its hash alone, so that its place is no part of a run's name.
    """
    from g3pt.models.encoders import EXPORTED, NONE, SMALL, commit_of, export_of, exported_text
    from g3pt.training.exports import export_hash

    if model.text_encoder not in (SMALL, NONE, EXPORTED) and (export := export_of(model.text_encoder)):
        exported_text(export)  # refuses one without a text encoder
        model = dataclasses.replace(model, text_encoder=EXPORTED, text_revision=export_hash(export))
        model, _ = pinned(model)
        return model, {"text_encoder": absolute(str(export))}
    if model.text_encoder == EXPORTED and model.text_revision is None:
        raise ValueError(f"text_encoder={EXPORTED} needs the folder of a generator's export: text_encoder=FOLDER")
    commits = {}
    for condition in ("text", "image"):
        name = getattr(model, f"{condition}_encoder")
        if name not in (SMALL, NONE, EXPORTED):
            commits[f"{condition}_revision"] = commit_of(name, getattr(model, f"{condition}_revision"))
    return dataclasses.replace(model, **commits), {}


def with_features(specs: Sequence[RunSpec], flags: Any) -> list[RunSpec]:
    """The runs with the paths of stored condition features or pictures, if --features asks for them. What is missing is
    computed.

    A run without such encoders is returned unchanged. UsageError if all of them are.
    """
    from g3pt.data.datasets import open_dataset
    from g3pt.models.features import encodings, pictures_of
    from pipelines.cluster.pool import Pool
    from pipelines.derive.features import store_features

    if flags.features == "live":
        return list(specs)
    pool = Pool(
        num_workers=1 if flags.num_workers == AUTO else max(1, flags.num_workers),
        all_gpus=True,
        ray_address=flags.ray_address,
        device=flags.device,
    )
    data = specs[0].paths["data"]
    if flags.features == "pictures":
        with_views = bool(open_dataset(data).config.num_views)
        wanted = [tuple(pictures_of(model) * with_views) for model in map(_model_of, specs)]
        why = f"{data} has no views, or the presets read no images"
    else:
        wanted = [tuple(encodings(_model_of(spec), spec.paths.get("text_encoder"))) for spec in specs]
        why = (
            f"{', '.join(dict.fromkeys(spec.preset for spec in specs))} trains its encoders, so there is nothing to "
            f"store; use a preset from 0.1B on, name a generator's export as text_encoder, or give --features pictures"
        )
    if not any(wanted):
        raise UsageError(f"--features {flags.features}: {why}")
    made = {some: store_features(data, some, pool) for some in dict.fromkeys(wanted) if some}
    told = [{f"{condition}_features": kind for condition, kind in made.get(some, {}).items()} for some in wanted]
    return [dataclasses.replace(spec, paths=spec.paths | paths) for spec, paths in zip(specs, told, strict=True)]


def _model_of(spec: RunSpec) -> Any:
    """The generator's configuration of a run."""
    from g3pt.config import CARConfig, from_dict

    return from_dict(CARConfig, spec.config["model"])


def open_data(data: str, selection: Selection = ALL) -> Any:
    """The dataset's DatasetInfo. UsageError for bad input and for a selection that no training object meets."""
    from g3pt.data.datasets import open_dataset
    from g3pt.data.reading import read_rows

    with bad_input():
        info = open_dataset(data)
        if not info.splits.get("train"):
            raise ValueError(f"{info.path}: its train split has no object with status ok")
        if selection != ALL:
            say(
                f"  {info.path.name}: the selection "
                f"{choose(selection, read_rows(info, ['id', 'license'], split='train'), str(info.path))}"
            )
    return info


def _spec(
    stage: str,
    preset: str,
    model: Any,
    train: Any,
    info: Any,
    selection: Selection,
    tokenizer: dict[str, str] | None = None,
) -> RunSpec:
    from g3pt.data.batches import DATA_ORDER
    from g3pt.training.optimizer import STEP_RULES

    # The fingerprint covers ids and meshes; changed captions or a repeated conversion change the hashes of the files.
    data = {"dataset": info.fingerprint, "shards": stable_hash(info.shards)}
    versions = {"data_order": DATA_ORDER, "step_rules": STEP_RULES}
    config = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(train), **versions, **data}
    paths = {"data": absolute(str(info.path))}
    config |= selection.as_config()
    if tokenizer:
        config["tokenizer"], paths["tokenizer"] = tokenizer["hash"], tokenizer["path"]
    return RunSpec(stage=stage, preset=preset, seed=train.seed, config=config, paths=paths)


def _varied(train: Any, flags: TrainFlags) -> Any:
    """The preset's TrainConfig with the flags' changes. A shorter run still reports and saves at least five times."""
    changes = {name: getattr(flags, name) for name in ("steps", "batch_size") if getattr(flags, name) is not None}
    if flags.steps is not None and flags.steps < train.steps:
        fifth = max(1, flags.steps // 5)
        changes |= {name: min(getattr(train, name), fifth) for name in ("log_every", "eval_every", "checkpoint_every")}
        # After a checkpoint between two records, the resumed run's next mean would lack the steps before it.
        changes["checkpoint_every"] -= changes["checkpoint_every"] % changes["log_every"]
    varied = dataclasses.replace(train, seed=flags.seed, **changes)
    check_workers(varied, flags.num_workers, flags.micro_batch)
    if flags.min_workers is not None and varied.batch_size % flags.min_workers:
        raise UsageError(f"--batch-size {varied.batch_size} is not a multiple of --min-workers {flags.min_workers}")
    return varied


def check_workers(train: Any, num_workers: int, micro_batch: int | str = AUTO) -> None:
    """UsageError unless the workers get equal shares of the global batch, in equal micro-batches. 0 workers means this
    process.
    """
    from g3pt.training.fit import count_parts

    share, left = divmod(train.batch_size, max(1, num_workers))
    if left:
        raise UsageError(f"--batch-size {train.batch_size} is not a multiple of --num-workers {num_workers}")
    with bad_input():
        count_parts(share, None if micro_batch == AUTO else int(micro_batch))


def is_named_by_micro_batch(spec: RunSpec) -> bool:
    """Whether the number of objects computed at once changes the weights: LFQ's entropy term reads their mean code."""
    return spec.config["model"].get("quantizer") == "lfq"


def named_by_micro_batch(spec: RunSpec, flags: TrainFlags) -> RunSpec:
    """The run's identity with the number of objects computed at once by all workers together, if that changes its
    weights.
    """
    at_once = spec.config["computed"]["micro_batch"] * flags.num_workers
    if not is_named_by_micro_batch(spec) or at_once >= spec.config["train"]["batch_size"]:
        return spec
    return dataclasses.replace(spec, config={**spec.config, "objects_at_once": at_once})


def refuse_unknown_gpu(flags: TrainFlags, size: int | None) -> None:
    """UsageError if --micro-batch auto would be resolved by a cluster's GPUs,
    which nobody knows before it is joined.
    """
    from pipelines.cluster.start import address_and_source

    address, _ = address_and_source(flags.ray_address)
    if flags.micro_batch == AUTO and size is None and flags.device != "cpu" and address != "local":
        raise UsageError(
            "with LFQ the micro-batch is part of a tokenizer's name, and this machine has no GPU to derive it from: "
            "give --micro-batch N, or --gpu-memory GIB of the cluster's GPUs, or --device cpu"
        )


def gpu_bytes_of_workers(flags: Any) -> int | None:
    """Memory of one of the connected cluster's GPUs, if workers will get one, else None.

    Says so while it waits for it.
    """
    from pipelines.train.run import workers_need

    if not flags.num_workers or not session.wants_gpu(flags.device):
        return None
    with asked("train", workers_need(1, flags.device)):
        return session.gpu_bytes()


def chosen(flags: TrainFlags) -> Selection:
    """The selection by --licenses and --exclude-ids."""
    return Selection(licenses=listed(flags.licenses), exclude_ids=listed(flags.exclude_ids))
