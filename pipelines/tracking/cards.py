"""What MLflow shows of each kind of work: its run's name, the few parameters worth filtering by, tags, and a short description.

How: a stage makes a `Card` from its own flags; `pipelines.tracking.tracked` turns it into an MLflow run. Nothing here talks to MLflow.
All that is kept in full lies in the output's own files; a card names what a person compares runs by. Metrics keep the ledger's
names behind a section (`val_iou` becomes `val/iou`), because MLflow's charts are grouped by what stands before the slash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g3pt.data.storage import Location, location

if TYPE_CHECKING:
    from pipelines.evaluate.job import EvaluateFlags
    from pipelines.generate.config import GenerateConfig
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.runs.identity import RunSpec
    from pipelines.study.job import SweepFlags

SHORT = 8  # digits of a hash that people read
DIAGNOSTICS = (
    "agreement",
    "digit_balance",
    "entropy",
    "residual_ratio",
    "utilisation",
)  # of codes, many and seldom looked at


@dataclass(frozen=True, kw_only=True)
class DatasetInput:
    """A dataset (or a file of prompts) that a run read, or made, by its fingerprint."""

    name: str
    fingerprint: str
    path: str
    context: str = "training"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One piece of work as MLflow shows it; `folder` is what it writes, `title` its one sentence in Markdown."""

    stage: str
    name: str
    title: str
    folder: Location
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: DatasetInput | None = None
    models: Mapping[str, Path] = field(default_factory=dict)  # role (model, tokenizer) -> run or export that was read
    experiment: str = ""  # default the stage's

    @property
    def experiment_name(self) -> str:
        """As MLflow lists it."""
        return f"g3pt/{self.experiment or self.stage}"


# ------------------------------------------------------------------------------------------------------------- metrics


def metric_name(name: str) -> str:
    """A ledger's name as MLflow shows it: val_iou -> val/iou, ce_scale_1 -> train by scale/ce_scale_1.

    MLflow sorts sections by name. Details of the test are single points, so they stand `within test`, below all curves.
    """
    section, rest = next(
        ((s, name[len(s) + 1 :]) for s in ("val", "test") if name.startswith(f"{s}_")), ("train", name)
    )
    codes, scaled = rest.startswith(DIAGNOSTICS), re.search(r"_scale_\d+$", rest)
    if section == "test":
        section = "within test" if codes or scaled else section
    elif codes or scaled:
        section += " codes" if codes else " by scale"
    return f"{section}/{rest}"


def shown_record(record: Mapping[str, float]) -> dict[str, float]:
    """A ledger's record for MLflow's charts: its numbers in sections, without the counts of objects, which never change."""
    return {
        key if key in ("step", "time") else metric_name(key): value
        for key, value in record.items()
        if not key.endswith("_objects")
    }


def intervals(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation; `x_interval_95` becomes x_low and x_high, what is neither is left out."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name.endswith("_interval_95") and value is not None:
            stem = name.removesuffix("_interval_95")
            found |= {f"{stem}_low": float(value[0]), f"{stem}_high": float(value[1])}
        elif isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def by_scale(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """A tokenizer's numbers against the number of scales, as records whose step is that number."""
    names = {
        "iou_first_{}_scales": "by scale/iou of the first scales",
        "iou_drop_shuffled_scale_{}": "by scale/iou lost with the scale shuffled",
    }
    records = []
    for step in range(1, 1 + sum(bool(re.fullmatch(r"iou_first_\d+_scales", name)) for name in metrics)):
        records.append(
            {"step": float(step), **{shown: float(metrics[name.format(step)]) for name, shown in names.items()}}
        )
    return records


# --------------------------------------------------------------------------------------------------------------- cards


def preprocessing(config: PreprocessConfig) -> Card:
    """Of jobs/preprocess.py; the fingerprint joins its name once it is known."""
    names = ("source", "input", "limit", "resolution", "watertight", "views", "num_surface", "num_queries", "seed")
    folder = location(config.output)
    return Card(
        stage="preprocess", name=f"{folder.name}-r{config.resolution}", folder=folder, params=given(config, names),
        title=f"**Dataset {code(folder.name)}** from source {code(config.source)}, solids at {config.resolution}³.",
    )  # fmt: skip


def training(spec: RunSpec, run_dir: Path, experiment: str = "") -> Card:
    """Of a training run, alone or (experiment scaling) of a study."""
    model, train = spec.config.get("model", {}), spec.config["train"]
    params = {"preset": spec.preset, "seed": spec.seed, "samples": train["steps"] * train["batch_size"]}
    params |= {name: train[name] for name in ("steps", "batch_size", "learning_rate", "precision") if name in train}
    params |= {name: model[name] for name in ("scales", "width", "quantizer", "depth", "head") if name in model}
    params |= {name: ",".join(spec.config[name]) for name in ("licenses", "exclude_ids") if spec.config.get(name)}
    dataset = dataset_input(spec.paths.get("data"), spec.config.get("dataset"))
    params |= {"dataset": label(dataset)} if dataset else {}
    models, tags = {}, {"g3pt.preset": spec.preset, "g3pt.config_hash": spec.hash8}
    if spec.stage == "car" and "tokenizer" in spec.paths:
        models["tokenizer"] = Path(spec.paths["tokenizer"])
        params["tokenizer"], tags["g3pt.tokenizer_hash"] = model_name(spec.paths["tokenizer"]), spec.config["tokenizer"]
    kind = {"cvq": "Tokenizer CVQ", "car": "Generator CAR"}[spec.stage]
    return Card(
        stage=spec.stage, name=spec.name, folder=run_dir, params=params, dataset=dataset, models=models, experiment=experiment,
        tags=tags,
        title=f"**{kind}**, preset {code(spec.preset)}, seed {spec.seed}: {train['steps']:,} steps of {train['batch_size']} samples.",
    )  # fmt: skip


def study(flags: SweepFlags, specs: Sequence[RunSpec], folder: Path) -> Card:
    """Of a scaling study. What grows with it (sizes, seeds) are tags: MLflow's parameters cannot be changed later."""
    sizes = list(dict.fromkeys(spec.preset for spec in specs))[::-1]
    dataset = dataset_input(specs[0].paths.get("data"), specs[0].config.get("dataset"))
    params = {"tokenizer": model_name(flags.tokenizer)} | ({"dataset": label(dataset)} if dataset else {})
    changed = f", every preset with {code(flags.set)}" if flags.set else ""
    return Card(
        stage="scaling", name=f"{folder.name}-{len(sizes)}-sizes-{sizes[0]}-to-{sizes[-1]}", folder=folder, dataset=dataset,
        params=params, models={"tokenizer": Path(flags.tokenizer)},
        tags={"g3pt.sizes": ",".join(sizes), "g3pt.seeds": flags.seeds, "g3pt.num_runs": str(len(specs)), "g3pt.set": flags.set or ""},
        title=f"**Scaling study** over {len(sizes)} sizes ({', '.join(map(code, sizes))}), seeds {code(flags.seeds)}{changed}; its runs are the children.",
    )  # fmt: skip


def generation(config: GenerateConfig, output: Path, model_hash: str) -> Card:
    """Of jobs/generate.py."""
    names = (
        "num",
        "seed",
        "cfg",
        "cfg_text",
        "cfg_image",
        "cfg_schedule",
        "top_k",
        "top_p",
        "temperature",
        "resolution",
        "max_faces",
        "format",
    )
    prompts = (
        Path(config.prompts).name
        if config.prompts
        else " + ".join(filter(None, (config.text, config.image and Path(config.image).name)))
    )
    dataset = None
    if config.prompts:
        path = Path(config.prompts).resolve()
        dataset = DatasetInput(name=path.name, fingerprint=file_hash(path), path=str(path), context="prompts")
    return Card(
        stage="generate", name=f"{output.name}-{model_name(config.model)}", folder=output, dataset=dataset, models={"model": Path(config.model)},
        params={"model": model_name(config.model), "prompts": prompts, **given(config, names)}, tags={"g3pt.model_hash": model_hash},
        title=f"**Meshes** made by {code(model_name(config.model))} from {code(prompts)}.",
    )  # fmt: skip


def evaluation(flags: EvaluateFlags, output: Path, kind: str, dataset: DatasetInput, model_hash: str) -> Card:
    """Of jobs/evaluate.py; `kind` is cvq or car."""
    names = ("split", "limit", "seed", "resolution", "coarse", "cfg", "top_k", "top_p", "temperature")
    names += ("num_samples", "num_image_samples") if kind == "car" else ("num_queries", "num_detailed")
    what = {"cvq": "Reconstruction", "car": "Samples of prompts"}[kind]
    return Card(
        stage="evaluate", name=f"{output.stem}-{model_name(flags.model)}-{flags.split}", folder=output, dataset=dataset, models={"model": Path(flags.model)},
        params={"kind": kind, "model": model_name(flags.model), "dataset": label(dataset), **given(flags, names)}, tags={"g3pt.model_hash": model_hash},
        title=f"**{what}**: {code(model_name(flags.model))} on split {code(flags.split)} of {code(dataset.name)}.",
    )  # fmt: skip


def given(flags: Any, names: Sequence[str]) -> dict[str, Any]:
    """These flags, without those that were left open."""
    return {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}


def dataset_input(path: str | None, fingerprint: str | None) -> DatasetInput | None:
    """A training dataset, if it is known."""
    return DatasetInput(name=location(path).name, fingerprint=fingerprint, path=path) if path and fingerprint else None


def label(dataset: DatasetInput) -> str:
    """Name and fingerprint, short enough for a column."""
    return f"{dataset.name}-{dataset.fingerprint[:SHORT]}"


def model_name(model: str | Path) -> str:
    """The run's name, of a run or its export; else the folder's."""
    path = Path(model).expanduser().resolve()
    return path.parent.name if path.name == "export" else path.name


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- note


def note(card: Card, command: str, results: Mapping[str, str], links: Mapping[str, str], failure: str = "") -> str:
    """The run's description: what it is, what came out, how it was started, where it lies. Markdown; MLflow shows four lines, more on a click."""
    parts = [card.title]
    if failure:
        parts.append(f"**It failed:** {code(failure)}")
    if results:
        parts.append(", ".join(f"{name.replace('_', ' ')} **{value}**" for name, value in results.items()) + ".")
    parts += [f"{role.capitalize()}: {link}." for role, link in links.items()]
    parts.append(f"Lies in {code(card.folder)}. Started with {code(command)}.")
    return "\n\n".join(parts)


def code(text: Any) -> str:
    """Text as Markdown code: what stands in it cannot become markup."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '/').split())}`"
