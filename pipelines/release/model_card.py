"""The model card of released weights: README.md with metadata for the Hugging Face hub, and CREDITS.md.

How: everything is read from files: the run's config.json, ledger and command.json, the export's list of training
objects, an evaluation's JSON. Text of the data is escaped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.preprocess.credits import by_author, plain
from pipelines.runs.ledger import Ledger, Record
from pipelines.tracking.cards import model_name

LICENSE = "apache-2.0"  # of the weights and of the code
KINDS = {
    "cvq": "tokenizer (CVQ): a surface's points to codes of several scales and back to occupancy",
    "car": "generator (CAR): text or an image to codes, decoded to a mesh",
}
CLASSES = {"cvq": "CVQ", "car": "G3PT"}  # public names of the package g3pt
SHOWN = {  # metrics of an evaluation, in this order, as far as it has them
    "iou_volume": "volume IoU", "iou_near": "IoU near the surface", "chamfer": "Chamfer distance",
    "f_score_0.005": "F-score at 0.005",
    "f_score_0.01": "F-score at 0.01", "f_score_0.02": "F-score at 0.02", "normal_consistency": "normal consistency",
    "hausdorff_95": "Hausdorff distance, 95 %", "distinct_iou_volume": "volume IoU without near-duplicates",
    "distinct_chamfer": "Chamfer without near-duplicates",
    "continuous_iou_volume": "volume IoU of the unquantised latents",
    "grid_iou_volume": "volume IoU of an occupancy grid of equal bits", "family_accuracy": "right family",
    "attribute_agreement": "attributes of the prompt found on the mesh", "valid_share": "watertight and in one body",
    "nearest_chamfer_median": "Chamfer to the nearest training object, median",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a card describes: a finished run."""

    name: str
    config: Mapping[str, Any]  # the export's config.json
    run: Mapping[str, Any]  # the run's config.json
    records: Sequence[Record]  # its ledger
    environment: Mapping[str, Any]
    trained_on: Sequence[Mapping[str, str]]  # for a generator also those of its tokenizer, each object once
    evaluation: Mapping[str, Any] | None = None
    precision: str = "fp32"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Samples and validation loss of the record whose weights these are; None for the last weights."""
        return self.config.get("best")


def read_run(
    run_dir: Path,
    export: Path,
    name: str,
    trained_on: Sequence[Mapping[str, str]],
    evaluation: Mapping[str, Any] | None,
    precision: str,
) -> Made:
    """Collect what the card of an export of a finished run needs."""
    from pipelines.runs.notes import COMMAND_FILE, read_note

    return Made(
        name=name, config=json.loads((export / "config.json").read_text(encoding="utf-8")),
        run=json.loads((run_dir / "config.json").read_text(encoding="utf-8")),
        records=Ledger.of(run_dir).read(), environment=(read_note(run_dir,
                                                                  COMMAND_FILE) or {}).get("environment") or {},
        trained_on=trained_on, evaluation=evaluation, precision=precision,
    )  # fmt: skip


def card(made: Made) -> str:
    """The content of README.md."""
    sections = [title(made), usage(made), data(made), budget(made), metrics(made), configuration(made)]
    return metadata(made) + "\n".join(line for section in sections for line in (*section, ""))


def metadata(made: Made) -> str:
    """The YAML block, written by the hub's library."""
    from huggingface_hub import ModelCardData

    kind = made.config["kind"]
    tags = ["3d", "g3pt", "shape-tokenizer" if kind == "cvq" else "text-to-3d", "pytorch"]
    values = ModelCardData(
        license=LICENSE,
        tags=tags,
        datasets=[Path(made.run["paths"]["data"]).name],
        library_name="g3pt",
        model_name=made.name,
    )
    return f"---\n{values.to_yaml()}\n---\n"


def title(made: Made) -> list[str]:
    """Title and description."""
    lines = [f"# {plain(made.name)}", "", f"An open G3PT {KINDS[made.config['kind']]}."]
    model = made.config["model"]
    if made.config["kind"] == "cvq":
        scales = ", ".join(map(str, model["scales"]))
        codes = (
            "FSQ " + " x ".join(map(str, model["fsq_levels"]))
            if model["quantizer"] == "fsq"
            else f"LFQ, {model['lfq_bits']} bits"
        )
        lines += ["", f"{sum(model['scales'])} tokens in scales {scales}; {codes}; width {model['width']}."]
    return [
        *lines,
        "",
        f"{chosen(made)} {start(made)}; the paper's authors have not released weights (arXiv 2409.06322).",
    ]


def chosen(made: Made) -> str:
    """Which weights of the run these are, and their precision."""
    if made.best is None:
        return f"Weights in {made.precision}."
    loss, samples = made.best["validation_loss"], made.best["samples"]
    return f"Weights in {made.precision}: those with the lowest validation loss, {loss:.4g}, after {samples:,} samples."


def start(made: Made) -> str:
    """How the training began."""
    export = made.run["config"].get("init_from")
    if not export:
        return "Trained from scratch by this project"
    name = model_name(made.run["paths"]["init_from"])
    return f"Trained by this project from the weights of {plain(name)} (export {export[:16]})"


def usage(made: Made) -> list[str]:
    """Section: how to load the model."""
    name = CLASSES[made.config["kind"]]
    lines = [
        f"from g3pt import {name}",
        "",
        f'model = {name}.from_pretrained("{made.name}")  # this folder, or a hub id',
    ]
    if made.config["kind"] == "car":
        lines += [
            'for mesh in model.generate(text="a tall chair", num=4, seed=0):  # trimesh.Trimesh',
            "    print(mesh.bounds)",
        ]
    return ["## Use", "", "```python", *lines, "```"]


def data(made: Made) -> list[str]:
    """Section: training objects, their licences and authors."""
    counts = Counter(row["license"] for row in made.trained_on)
    selection = made.run["config"]
    lines = [
        "## Data",
        "",
        f"Trained on {len(made.trained_on)} objects of the dataset {plain(Path(made.run['paths']['data']).name)} "
        f"(fingerprint {selection['dataset'][:16]}).",
    ]
    for name, words in (("licenses", "Restricted to these licences"), ("exclude_ids", "Excluded by id")):
        lines += [f"{words}: {', '.join(plain(value) for value in selection[name])}."] if selection.get(name) else []
    lines += [
        "",
        "| licence | objects |",
        "|---|---|",
        *(f"| {plain(name or 'none stated')} | {count} |" for name, count in counts.most_common()),
    ]
    lines += [
        "",
        "Id, licence, author and address of every object: `trained_on` in config.json. All authors by licence: "
        "CREDITS.md.",
    ]
    credited = [row for row in made.trained_on if row["license"].startswith("CC-BY")]
    return [
        *lines,
        *(
            [
                "",
                "With thanks to the authors of the objects under Creative Commons Attribution:",
                "",
                *by_author(credited),
            ]
            if credited
            else []
        ),
    ]


def credits(made: Made) -> str:
    """The content of CREDITS.md: all authors by licence."""
    return "\n".join([f"# Authors of the training objects of {plain(made.name)}", "", *by_author(made.trained_on), ""])


def budget(made: Made) -> list[str]:
    """Section: steps, samples, time, hardware."""
    train, about = made.run["config"]["train"], made.environment
    hardware = (
        f"{about.get('cores', '?')} x {about.get('cpu', 'unknown processor')}, "
        f"{', '.join(about.get('gpus') or []) or 'no GPU'}"
    )
    return [
        "## Training", "",
        f"{train['steps']:,} steps of {train['batch_size']} objects ({train['steps'] * train['batch_size']:,} "
        f"samples), seed {made.run['seed']}, {train['precision']}; "
        f"{seconds(made.records):,.0f} s without validation on {plain(hardware)}.",
        f"Run `{made.run['name']}`, code at commit {about.get('git_commit', 'unknown')}, torch "
        f"{(about.get('packages') or {}).get('torch', 'unknown')}.",
    ]  # fmt: skip


def seconds(records: Sequence[Record]) -> float:
    """Seconds spent in training steps, from the rates in the ledger."""
    starts = [0.0, *(record["step"] for record in records)]
    return sum(
        (record["step"] - start) / record["samples_per_second"]
        for start, record in zip(starts, records, strict=False)
        if record.get("samples_per_second")
    )


def metrics(made: Made) -> list[str]:
    """Section: metrics on held-out objects, from the evaluation with its protocol or, without one, from the run's own
    test record.
    """
    lines = ["## Held-out objects", ""]
    if made.evaluation is None and made.best is not None:
        return [*lines, "Not evaluated. The run's own test metrics are those of its last weights."]
    if made.evaluation is None:
        return [
            *lines,
            "Measured during training on the test split; scales from coarse to fine.",
            "",
            *own_metrics(made.records[-1] if made.records else {}),
        ]
    values, dataset = made.evaluation["metrics"], made.evaluation["dataset"]
    lines += [
        f"Split {dataset['split']}, {values.get('num_objects', 'all its')} objects"
        + (", with the weights before rounding." if made.precision != "fp32" else "."),
        "",
        "| | value | 95 % interval |",
        "|---|---|---|",
    ]
    lines += [
        f"| {label} | {values[name]:.4f} | {interval(values.get(f'{name}_interval_95'))} |"
        for name, label in SHOWN.items()
        if isinstance(values.get(name), (int, float))
    ]
    lines += [
        f"| IoU, first {name.split('_')[2]} scales | {value:.4f} | |"
        for name, value in values.items()
        if name.startswith("iou_first_") and isinstance(value, (int, float))
    ]
    lines += [
        f"| volume IoU, {band}: {part['num_objects']} objects | {part['iou_volume']:.4f} | "
        f"{interval(part['iou_volume_interval_95'])} |"
        for band, part in values.get("by_thickness", {}).items()
    ]
    return [
        *lines,
        "",
        "How each number was made:",
        "",
        *(
            f"- {plain(name)}: {plain(value)}"
            for name, value in made.evaluation["protocol"].items()
            if isinstance(value, (str, int, float))
        ),
    ]


def own_metrics(record: Record) -> list[str]:
    """The test metrics of a ledger's last record: overall ones, then a row per diagnostic with a column per scale."""
    found = {name.removeprefix("test_"): value for name, value in sorted(record.items()) if name.startswith("test_")}
    whole = [f"| {plain(name)} | {value:.4g} |" for name, value in found.items() if "_scale_" not in name]
    by_scale = [name.removesuffix("_scale_1") for name in found if name.endswith("_scale_1")]
    ks = range(1, 1 + sum(name.startswith(f"{by_scale[0]}_scale_") for name in found)) if by_scale else []
    head = ["", f"| | {' | '.join(f'scale {k}' for k in ks)} |", "|---" * (len(ks) + 1) + "|"] if by_scale else []
    rows = [
        f"| {plain(name)} | {' | '.join(format(found[f'{name}_scale_{k}'], '.4g') for k in ks)} |" for name in by_scale
    ]
    return ["| | |", "|---|---|", *whole, *head, *rows]


def interval(pair: Sequence[float] | None) -> str:
    """`low to high`."""
    return f"{pair[0]:.4f} to {pair[1]:.4f}" if pair else ""


def configuration(made: Made) -> list[str]:
    """Section: the model's full configuration."""
    rows = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(made.config["model"].items())]
    return ["## Configuration", "", "```json", "{", ",\n".join(rows), "}", "```"]
