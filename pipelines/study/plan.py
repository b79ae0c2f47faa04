"""The runs of a study, from its flags."""

import dataclasses
import itertools
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.overrides import overridden
from pipelines.study.config import SweepFlags
from pipelines.train.counts import count_car
from pipelines.train.jobs import check_workers


def plan(flags: SweepFlags) -> list[tuple[str, Any, Any]]:
    """(size, CARConfig, TrainConfig) of each run, largest first, so that the longest run starts first."""
    from g3pt.config import car_preset

    with bad_input():
        names, seeds = (
            _different("--sizes", flags.sizes.split(",")),
            _different("--seeds", [int(seed) for seed in flags.seeds.split(",")]),
        )
        sizes = {size: car_preset(size) for size in names}
        changes = {name: getattr(flags, name) for name in ("steps", "batch_size") if getattr(flags, name) is not None}
        sizes = {size: (model, dataclasses.replace(config, **changes)) for size, (model, config) in sizes.items()}
    sizes = {size: overridden(flags.set, *preset, seed_flag="--seeds") for size, preset in sizes.items()}
    for one, other in itertools.combinations(sizes, 2):
        if sizes[one][0] == sizes[other][0]:
            raise UsageError(
                f"--set {flags.set}: it makes {one} and {other} the same model; set other fields, or remove one of "
                "them from --sizes"
            )
    rows = [
        (size, model, dataclasses.replace(config, seed=seed))
        for size, (model, config) in sizes.items()
        for seed in seeds
    ]
    for _, _, config in rows:
        check_workers(config, flags.num_workers, flags.micro_batch)
    return sorted(rows, key=lambda row: -count_car(row[1])["parameters_no_embed"])


def _different(flag: str, values: list[Any]) -> list[Any]:
    """The values. ValueError for a repeated one: a run counted twice would make the fit's intervals too narrow."""
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{flag} names {repeated[0]} twice")
    return values
