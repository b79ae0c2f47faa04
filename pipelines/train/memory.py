"""How much memory a worker of a training run needs, and from that how many objects it computes at once and whether it
recomputes activations.

How: `needs` builds the run's model without memory and rehearses a step (`g3pt.training.memory`). `choose` takes the
largest divisor of a worker's share of the batch that fits in a GPU less MARGIN. Recomputation repeats the forward pass
of the layers, so it is chosen only where fewer than ENOUGH objects fit without it. Without a GPU the share is computed
whole. The choice is recorded in the run's config.json (`computed`, and `checkpoint_layers` of the model) and in every
record of its ledger.
Not counted: the live pretrained encoders' own activations, which are freed before the generator's are made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.cli.errors import UsageError
from pipelines.cli.progress import say
from pipelines.train.counts import condition_widths, count_cvq

if TYPE_CHECKING:
    from g3pt.training.memory import Activations, Memory
    from pipelines.runs.identity import RunSpec

GIB = 2**30
MARGIN = 0.1  # share of a GPU's memory that stays free: CUDA's context, workspaces, gaps between blocks
NODE_GPUS = 8  # of a node, where this machine has none
ENOUGH = 4  # objects at once: fewer are a reason to recompute activations
AUTO = "auto"
CLIP_PARAMETERS, DINO_PARAMETERS = (
    123_060_480,
    304_368_640,
)  # of the large presets' encoders (ViT-L/14), CLIP's text tower only
REHEARSED = (2, 3)  # layers of a deeper generator whose steps are rehearsed
WORDS = 16  # of a caption, in the rehearsal


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How a run's workers share its batch and its model."""

    share: int  # objects of a batch per worker
    count: int = 1
    parallel: str = "ddp"
    per_node: int | None = None  # None: all on one node

    @property
    def shards(self) -> int:
        """Parts into which the model is divided: on several full nodes each has the whole model."""
        if self.parallel != "fsdp":
            return 1
        node = self.per_node or self.count
        return node if 1 < node < self.count and self.count % node == 0 else self.count

    def divisors(self) -> list[int]:
        """Numbers of objects that a worker may compute at once, largest first."""
        return [n for n in range(self.share, 0, -1) if self.share % n == 0]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Memory of a run's workers, by the number of objects at once."""

    trained: int
    frozen: int
    gathered: Any
    precision: str
    activations: Activations

    def memory(self, objects: int, workers: Workers) -> Memory:
        """Of a worker that computes `objects` at once."""
        from g3pt.training.memory import training_memory

        return training_memory(
            self.trained,
            self.activations.of(objects),
            frozen=self.frozen,
            batch=workers.share * self.activations.batch_per_object,
            shards=workers.shards,
            gathered=self.gathered,
            precision=self.precision,
            accumulates=workers.count > 1 or objects < workers.share,
            whole_gradients=objects < workers.share,
        )

    def most(self, room: float, workers: Workers) -> int:
        """The largest number of objects at once that fits in `room` bytes; 0 if one does not fit."""
        fitting = (n for n in workers.divisors() if self.memory(n, workers).total <= room)
        return next(fitting, 0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a worker computes its share of a batch."""

    micro_batch: int
    recompute: bool

    def __str__(self) -> str:
        how = "recomputing the layers' activations" if self.recompute else "no recomputation"
        return f"{self.micro_batch} objects at once per worker, {how}"


def workers_of(train: Any, flags: Any) -> Workers:
    """The workers that the flags of a training or a study ask for, at least, on nodes like this machine."""
    import torch

    count = getattr(flags, "min_workers", None) or max(1, flags.num_workers)
    return Workers(
        share=train.batch_size // count,
        count=count,
        parallel=getattr(flags, "parallel", "ddp"),
        per_node=torch.cuda.device_count() or NODE_GPUS,
    )


def gpu_bytes(flags: Any) -> int | None:
    """Memory of a worker's GPU: what --gpu-memory says, else that of this machine's smallest GPU; None for no GPU."""
    import torch

    if flags.device == "cpu" or not flags.num_workers:
        return None
    if flags.gpu_memory:
        return round(flags.gpu_memory * GIB)
    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))


def plan_step(model: Any, train: Any, flags: Any, codec: Any, size: int | None) -> Choice:
    """How workers compute their share on GPUs of `size` bytes (None: without a GPU): as --micro-batch says,
    or by `choose`.
    """
    workers = workers_of(train, flags)
    given = None if flags.micro_batch == AUTO else min(flags.micro_batch, workers.share)
    if size is None:
        return Choice(micro_batch=given or workers.share, recompute=model.checkpoint_layers)
    narrow = workers.shards > 1 and train.precision == "bf16"
    of = {"codec": codec, "encoders": getattr(flags, "features", "live") != "stored", "narrow": narrow}
    if given is None:
        return choose(model, train.precision, workers, size, **of)
    whole = needs(model, train.precision, **of).memory(given, workers).total
    return Choice(micro_batch=given, recompute=model.checkpoint_layers or whole > (1 - MARGIN) * size)


def with_plan(spec: RunSpec, flags: Any, size: int | None) -> RunSpec:
    """The run with its `plan_step`."""
    from g3pt.config import MODEL_CONFIGS, CVQConfig, TrainConfig, from_dict
    from g3pt.training.exports import read_export_config

    model, train = (
        from_dict(MODEL_CONFIGS[spec.stage], spec.config["model"]),
        from_dict(TrainConfig, spec.config["train"]),
    )
    codec = None
    if spec.stage == "car":
        codec = from_dict(CVQConfig, read_export_config(spec.paths["tokenizer"])["model"])
    choice = plan_step(model, train, flags, codec, size)
    if size is not None:
        say(f"  {spec.preset}: {choice} ({size / GIB:.1f} GiB per GPU, {MARGIN:.0%} of it kept free)")
    config = {
        **spec.config,
        "model": {**spec.config["model"], "checkpoint_layers": choice.recompute},
        "computed": {"micro_batch": choice.micro_batch},
    }
    return dataclasses.replace(spec, config=config)


@functools.lru_cache(maxsize=64)  # a study plans each size several ways
def needs(model: Any, precision: str, codec: Any = None, encoders: bool = True, narrow: bool = False) -> Needs:
    """What a run of the configuration `model` needs: a generator of `codec`'s codes, else a tokenizer.

    `encoders`: the pretrained ones are in memory (their features are not stored). `narrow`: the model is sharded and
    trained in bf16.
    """
    from g3pt.training.memory import rehearse
    from g3pt.training.parallel import gathered

    module, batch_of = cvq_step(model) if codec is None else car_step(model, codec)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if codec is None or model.depth <= REHEARSED[1]:
        activations = rehearse(module, batch_of, precision, narrow=narrow)
    else:
        parts = [
            rehearse(*car_step(dataclasses.replace(model, depth=n), codec), precision, narrow=narrow) for n in REHEARSED
        ]
        activations = deeper(*parts, model.depth)
    return Needs(
        trained=trained,
        frozen=0 if codec is None else frozen_parameters(model, codec, encoders),
        gathered=gathered(module),
        precision=precision,
        activations=activations,
    )


def deeper(two: Activations, three: Activations, depth: int) -> Activations:
    """The activations of a generator of `depth` layers, from those of two and of three: each further layer adds the
    same.
    """
    from g3pt.training.memory import Activations

    return Activations(
        **{
            name: getattr(two, name) + (depth - REHEARSED[0]) * (getattr(three, name) - getattr(two, name))
            for name in ("fixed", "per_object", "batch_per_object")
        }
    )


def choose(model: Any, precision: str, workers: Workers, size: int, margin: float = MARGIN, **of: Any) -> Choice:
    """The choice for GPUs of `size` bytes of which the share `margin` stays free; `of` as in `needs`. UsageError if not
    even one object fits.

    Activations are always recomputed if `model` says so.
    """
    room = (1 - margin) * size
    found = {}
    for recompute in (False, True):
        if model.checkpoint_layers and not recompute:
            continue
        found[recompute] = needs(dataclasses.replace(model, checkpoint_layers=recompute), precision, **of)
        most = found[recompute].most(room, workers)
        if most >= min(ENOUGH, workers.share) or (recompute and most):
            return Choice(micro_batch=most, recompute=recompute)
    least = found[True].memory(1, workers).total
    raise UsageError(
        f"one object at once needs {least / GIB:.1f} GiB of a worker's memory, and a GPU of {size / GIB:.1f} "
        f"GiB has {room / GIB:.1f} to give: use --parallel fsdp with more workers, or a smaller preset"
    )


# --- models and batches to rehearse -----------------------------------------------------------------------------------


def cvq_step(config: Any) -> tuple[Any, Callable[[int], dict[str, Any]]]:
    """A tokenizer in its last phase, and its batches."""
    import torch

    from g3pt.models.tokenizer import CVQ

    queries = config.num_volume_queries + config.num_near_queries

    def batch_of(objects: int) -> dict[str, Any]:
        batch = {
            "surface_BP6": torch.zeros(objects, config.num_points, 6, dtype=torch.float16),
            "points_BQ3": torch.zeros(objects, queries, 3, dtype=torch.float16),
            "occupancy_BQ": torch.zeros(objects, queries, dtype=torch.bool),
            "near_BQ": torch.zeros(objects, queries, dtype=torch.bool),
        }
        if config.num_sharp_points:
            batch["sharp_BP6"] = torch.zeros(objects, config.num_sharp_points, 6, dtype=torch.float16)
        return batch

    return CVQ(config), batch_of


def car_step(config: Any, codec: Any, tokenizer: Any = None) -> tuple[Any, Callable[[int], dict[str, Any]]]:
    """A generator without its pretrained encoders, and its batches, which have the encoders' outputs.

    Aligned inputs are made in each step, as on a dataset that is too large to keep them. Without a `tokenizer` they are
    zeros, and the model has no memory (it is on the meta device).
    """
    import torch

    from g3pt.models.car import G3PT
    from g3pt.models.encoders import EXPORTED, NONE, SMALL, StoredEncoder, text_is_small

    text, image, image_tokens = condition_widths(config)
    stored = {}
    if text_is_small(config.text_encoder):
        config = dataclasses.replace(config, text_encoder=SMALL if config.text_encoder == SMALL else EXPORTED)
    else:
        stored["text"] = StoredEncoder(config.text_encoder, None, text)
    if config.image_encoder not in (SMALL, NONE):
        stored["image"] = StoredEncoder(config.image_encoder, None, image, image_tokens)
    if tokenizer is not None:
        model = G3PT(config, tokenizer, stored=stored)
    else:
        shell = torch.nn.Module()
        shell.config = codec
        with torch.device("meta"):
            model = G3PT(config, shell, stored=stored)
        aligned = (codec.num_tokens - codec.scales[0], codec.width)
        model.aligned_inputs = lambda codes_BS, _: torch.zeros(len(codes_BS), *aligned)

    def batch_of(objects: int) -> dict[str, Any]:
        batch = {
            "codes_BS": torch.zeros(objects, codec.num_tokens, dtype=torch.int64),
            "has_text_B": torch.ones(objects, dtype=torch.bool),
            "has_image_B": torch.ones(objects, dtype=torch.bool),
        }
        if "text" in stored:
            batch["text_BC"] = torch.zeros(objects, text)
        else:
            batch |= {name: torch.ones(objects, WORDS, dtype=torch.int64) for name in ("text_BM", "text_mask_BM")}
        if "image" in stored:
            batch["image_BMC"] = torch.zeros(objects, image_tokens, image)
        elif image:
            batch["images_B3HW"] = torch.zeros(objects, 3, config.image_size, config.image_size)
        return batch

    return model, batch_of


def frozen_parameters(model: Any, codec: Any, encoders: bool = True) -> int:
    """Frozen parameters: those of the tokenizer and, unless their features are stored, of the pretrained encoders."""
    from g3pt.models.encoders import NONE, SMALL, text_is_small

    text = SMALL if text_is_small(model.text_encoder) else model.text_encoder  # one of an export is not worth counting
    named = [(text, CLIP_PARAMETERS), (model.image_encoder, DINO_PARAMETERS)]
    return tokenizer_parameters(codec) + sum(count for name, count in named if encoders and name not in (SMALL, NONE))


@functools.lru_cache(maxsize=64)
def trained_parameters(model: Any, codec: Any) -> int:
    """Trained parameters of a generator, with its small encoders."""
    module, _ = car_step(model, codec)
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@functools.lru_cache
def tokenizer_parameters(codec: Any) -> int:
    """Parameters of a tokenizer. It is built for that, which takes two seconds at the paper's size."""
    return count_cvq(codec)["parameters"]
