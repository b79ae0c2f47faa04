"""The runs of a study, from its flags: sizes, numbers of samples, seeds; which of them are predicted first."""

import dataclasses
import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.overrides import overridden
from pipelines.study.config import SweepFlags
from pipelines.study.ladder import MAX_WARMUP_SHARE, ladder
from pipelines.train.counts import count_car
from pipelines.train.jobs import check_workers
from pipelines.train.memory import AUTO

SHAPE = {"depth", "width", "num_heads", "checkpoint_layers"}
OWN_TRAINING = {"steps", "learning_rate", "seed", "cooldown_share", "log_every", "eval_every", "checkpoint_every"}
UNITS = {"": 1, "k": 1000, "M": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run of a study."""

    size: str
    model: Any  # CARConfig
    train: Any  # TrainConfig
    held_out: bool = False  # predicted before it may start, and no part of the fit

    @property
    def samples(self) -> int:
        """Objects seen in training, repetitions included."""
        return int(self.train.steps * self.train.batch_size)


def plan(flags: SweepFlags) -> list[Row]:
    """The runs, largest size first and longest first within a size, so that the longest trial starts first."""
    with bad_input():
        names = _different("--sizes", flags.sizes.split(","))
        seeds = _different("--seeds", [int(seed) for seed in flags.seeds.split(",")])
        ahead = held_out(flags.held_out)
    sizes = {size: preset(size, flags) for size in dict.fromkeys([*names, *(size for size, _ in ahead)])}
    check_different(sizes, flags)
    with bad_input():
        if flags.samples:
            rows = _ladders(sizes, names, seeds, ahead, flags)
        else:
            rows = [
                Row(size=size, model=sizes[size][0], train=dataclasses.replace(sizes[size][1], seed=seed))
                for size in names
                for seed in seeds
            ]
    for row in rows:
        check_workers(row.train, 1 if flags.num_workers == AUTO else flags.num_workers, flags.micro_batch)
    return sorted(rows, key=lambda row: (-count_car(row.model)["parameters_no_embed"], row.train.seed, -row.samples))


def preset(size: str, flags: SweepFlags) -> tuple[Any, Any]:
    """A size's model and training, as --steps, --batch-size and --set change them."""
    from g3pt.config import car_preset

    with bad_input():
        model, train = car_preset(size)
        changes = {name: getattr(flags, name) for name in ("steps", "batch_size") if getattr(flags, name) is not None}
        train = dataclasses.replace(train, **changes)
    model, train = overridden(flags.set, model, train, seed_flag="--seeds")
    return model, train


def check_different(sizes: dict[str, tuple[Any, Any]], flags: SweepFlags) -> None:
    """UsageError for two sizes that are the same model."""
    for one, other in itertools.combinations(sizes, 2):
        if sizes[one][0] == sizes[other][0]:
            if not flags.set:
                raise UsageError(f"--sizes {one} and {other} are the same model: remove one of them")
            raise UsageError(
                f"--set {flags.set}: it makes {one} and {other} the same model; set other fields, or remove one of "
                "them from --sizes"
            )


def differing(configs: Sequence[Any], own: Collection[str]) -> dict[str, list[Any]]:
    """Field -> its values, of the fields in which these configurations differ beside their `own`."""
    names = (f.name for f in dataclasses.fields(configs[0]) if f.name not in own)
    values = {name: list(dict.fromkeys(getattr(config, name) for config in configs)) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def check_one_curve(sizes: dict[str, tuple[Any, Any]]) -> None:
    """ValueError for sizes of a law in N and D that learn from other conditions, with other losses or batches: their
    losses are not points of one curve.
    """
    models, trains = zip(*sizes.values(), strict=True)
    found = differing(models, SHAPE)
    if found:
        values = ",".join(f"{name}={_as_set(value[-1])}" for name, value in found.items())
        raise ValueError(
            f"one law needs the same conditions and losses at all sizes, and {_shown(found)}: give --set, as in --set "
            f"{values}, or leave out sizes"
        )
    if batches := differing(trains, {f.name for f in dataclasses.fields(trains[0])} - {"batch_size"}):
        raise ValueError(f"one law needs one batch, and {_shown(batches)}: give --batch-size")


def unlike(rows: Sequence[Row]) -> str:
    """A line about what the sizes differ in beside their shape and learning rate; "" if in nothing."""
    first = {row.size: row for row in rows}.values()
    found = differing([row.model for row in first], SHAPE) | differing([row.train for row in first], OWN_TRAINING)
    return f"sizes differ in more than their shape: {_shown(found)}" if found else ""


def _shown(found: dict[str, list[Any]]) -> str:
    return "; ".join(f"{name} is {', '.join(map(_as_set, values))}" for name, values in found.items())


def _as_set(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _ladders(
    sizes: dict[str, tuple[Any, Any]],
    names: Sequence[str],
    seeds: Sequence[int],
    ahead: Sequence[tuple[str, int]],
    flags: SweepFlags,
) -> list[Row]:
    """Every size of `names` with every number of samples and seed, and the runs to be predicted with the first seed."""
    counts = _different("--samples", [number(text) for text in flags.samples.split(",")])  # type: ignore[union-attr]
    check_one_curve(sizes)
    for size, count in ahead:
        if size in names and count in counts:
            raise ValueError(f"--held-out {size}:{count} is one of the runs that are fitted")
    rates = _rates(sizes, counts, flags)
    warmup = int(MAX_WARMUP_SHARE * min(counts)) if flags.warmup_samples is None else flags.warmup_samples
    rows = []
    for size, (model, train) in sizes.items():
        base = dataclasses.replace(train, learning_rate=rates[size], ema_decay=0.0)  # cooled weights need no average
        mine = [count for name, count in ahead if name == size]
        for seed in seeds if size in names else seeds[:1]:
            longest = [*(counts if size in names else []), *(mine if seed == seeds[0] else [])]
            for config in ladder(dataclasses.replace(base, seed=seed), longest, warmup):
                is_ahead = config.steps * config.batch_size in mine and (size not in names or seed == seeds[0])
                rows.append(Row(size=size, model=model, train=config, held_out=is_ahead))
    return rows


def _rates(sizes: dict[str, tuple[Any, Any]], counts: Sequence[int], flags: SweepFlags) -> dict[str, float]:
    """Learning rate of each size: the preset's, or the rule's at the geometric middle of the numbers of samples,
    because all runs of a trajectory share one.
    """
    if not flags.lr_rule:
        return {size: train.learning_rate for size, (_, train) in sizes.items()}
    from g3pt.scaling.learning_rate import rule_of

    try:
        rule = rule_of(json.loads(Path(flags.lr_rule).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--lr-rule {flags.lr_rule} contains no rule: {type(error).__name__}: {error}") from error
    middle = (min(counts) * max(counts)) ** 0.5
    return {
        size: float(f"{rule(count_car(model)['parameters_no_embed'], middle):.3g}")
        for size, (model, _) in sizes.items()
    }


def held_out(text: str | None) -> list[tuple[str, int]]:
    """(size, samples) of each `SIZE:SAMPLES`. ValueError for anything else."""
    found = []
    for part in filter(None, (text or "").split(",")):
        size, colon, count = part.partition(":")
        if not (size and colon):
            raise ValueError(f"--held-out takes SIZE:SAMPLES, such as 1.5M:128k, got {part!r}")
        found.append((size, number(count)))
    return _different("--held-out", found)


def number(text: str) -> int:
    """A count such as 500, 8k or 1.5M. ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k|M|)", text.strip())
    value = float(found[1]) * UNITS[found[2]] if found else 0.0
    if value < 1 or value != round(value):
        raise ValueError(f"{text!r} is no count, such as 500, 8k or 1.5M")
    return round(value)


def _different(flag: str, values: list[Any]) -> list[Any]:
    """The values. ValueError for a repeated one: a run counted twice would make the fit's intervals too narrow."""
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{flag} names {repeated[0]} twice")
    return values
