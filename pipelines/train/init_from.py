"""`--init-from`: a run starts from the weights of another run or export instead of random ones.

How: the command checks names and shapes of the tensors before Ray starts, as far as they follow from the configuration;
a worker compares all of them. The hash of the export is part of the run's identity. A generator's frozen tokenizer and
encoders are not taken from the export. Optimiser, average and learning rate start anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from g3pt.models.encoders import EXPORTED
from g3pt.training.exports import export_hash, find_export, finite_tensors, read_export_config
from pipelines.cli.errors import bad_input
from pipelines.runs.identity import RunSpec

Shapes = Mapping[str, tuple[int, ...]]
WORDS = "small_encoders"


def started_from(spec: RunSpec, init_from: str | None) -> RunSpec:
    """`spec` with the export at `init_from`, if there is one.

    UsageError if its tensors do not fit the configured model.
    """
    if init_from is None:
        return spec
    with bad_input():
        export = find_export(init_from).absolute()
        kind = read_export_config(export)["kind"]
        if kind != spec.stage:
            raise ValueError(f"{init_from}: contains a {kind!r} model; this run trains a {spec.stage!r} one")
        found = {name: tuple(tensor.shape) for name, tensor in finite_tensors(export)}
        wanted = configured_shapes(spec)
        check_shapes(wanted, {name: found[name] for name in found if spec.stage == "cvq" or name in wanted}, export)
        config = {**spec.config, "init_from": export_hash(export)}
    return dataclasses.replace(spec, config=config, paths={**spec.paths, "init_from": str(export)})


def configured_shapes(spec: RunSpec) -> Shapes:
    """Shapes of a run's model: of a tokenizer's tensors, or of a generator's transformer."""
    from g3pt.config import CARConfig, CVQConfig, from_dict
    from g3pt.models.tokenizer import CVQ
    from pipelines.train.counts import meta_car

    if spec.stage == "cvq":
        return shapes_of(CVQ(from_dict(CVQConfig, spec.config["model"])))
    codec = from_dict(CVQConfig, read_export_config(spec.paths["tokenizer"])["model"])
    car = meta_car(from_dict(CARConfig, spec.config["model"]), codec)
    # whether there are tensors for the image depends on the dataset's views
    return {
        f"car.{name}": shape for name, shape in shapes_of(car).items() if "image" not in name and "prefix" not in name
    }


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of what is loaded into `model`: its state without frozen parts."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(frozen(model))}


def frozen(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the tensors that a generator has from elsewhere: of its tokenizer, and
    of an export's text encoder.
    """
    exported = getattr(getattr(model, "config", None), "text_encoder", None) == EXPORTED
    return ("tokenizer.", "text_encoder.") if exported else ("tokenizer.",)


def check_shapes(wanted: Shapes, found: Shapes, export: Path) -> None:
    """ValueError that names the first tensor of the export that is missing, left over, or of another shape."""
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            theirs, ours = (shapes.get(name, "missing") for shapes in (found, wanted))
            raise ValueError(
                f"{export}: tensor {name} is {theirs}, in this run's model {ours}; --init-from takes a model of the "
                f"same sizes"
            )


def initialise(model: Any, spec: RunSpec) -> None:
    """Copy the weights and running statistics of the run's `init_from` into `model`; nothing without one.

    ValueError if the export has changed since the run was named, does not fit, or has a text encoder for other words.
    """
    if "init_from" not in spec.paths:
        return
    export = Path(spec.paths["init_from"])
    if export_hash(export) != spec.config["init_from"]:
        raise ValueError(f"{export}: changed since this run was named; start the command again for a new run")
    own = model.export_config().get(WORDS) if "text_encoder." not in frozen(model) else None
    if own and own["text"] != read_export_config(export)[WORDS]["text"] and hasattr(model, "text_encoder"):
        raise ValueError(f"{export}: its text encoder knows other words than this dataset's captions have")
    tensors = {name: tensor for name, tensor in finite_tensors(export) if not name.startswith(frozen(model))}
    check_shapes(shapes_of(model), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, export)
    model.load_state_dict(tensors, strict=False)  # the names were compared; frozen parts keep their own
