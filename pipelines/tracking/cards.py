"""Card: what MLflow shows of a piece of work: the run's name, the few parameters worth filtering by, tags, a short
description.

How: each stage makes a `Card` from its own flags (its function `card`), and `pipelines.tracking.tracked` turns it into
an MLflow run. Nothing here calls MLflow. The output's own files hold everything; a card holds what a person compares
runs by. Every key of a ledger's record becomes an MLflow metric, with a section in front (`val_iou` becomes `val/iou`),
because MLflow groups charts by the part before the slash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from g3pt.data.storage import Location, is_remote, location

SHORT = 8  # digits of a hash that is shown to people
DIAGNOSTICS = (
    "agreement",
    "digit_balance",
    "entropy",
    "residual_ratio",
    "utilisation",
)  # of the codes: many, and seldom looked at


@dataclass(frozen=True, kw_only=True)
class DatasetInput:
    """A dataset (or a file of prompts) that a run read or made, identified by its fingerprint."""

    name: str
    fingerprint: str
    path: str
    context: str = "training"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One piece of work as MLflow shows it. `folder` is its output, `title` one sentence in Markdown."""

    stage: str
    name: str
    title: str
    folder: Location
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: DatasetInput | None = None
    models: Mapping[str, Path] = field(
        default_factory=dict
    )  # role (model, tokenizer) -> the run or export that was read
    experiment: str = ""  # default: the stage

    @property
    def experiment_name(self) -> str:
        """The experiment's name in MLflow."""
        return f"g3pt/{self.experiment or self.stage}"


# ------------------------------------------------------------------------------------------------------------- metrics


def metric_name(name: str) -> str:
    """MLflow's name of a ledger's key: val_iou -> val/iou, ce_scale_1 -> train by scale/ce_scale_1.

    MLflow sorts sections by name. Details of the test are single points; the section `within test` puts them below all
    curves.
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
    """A ledger's record with MLflow's names, without the counts of objects, which never change."""
    return {
        key if key in ("step", "time") else metric_name(key): value
        for key, value in record.items()
        if not key.endswith("_objects")
    }


def intervals(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation. `x_interval_95` becomes x_low and x_high; values of other kinds are left out."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name.endswith("_interval_95") and value is not None:
            stem = name.removesuffix("_interval_95")
            found |= {f"{stem}_low": float(value[0]), f"{stem}_high": float(value[1])}
        elif isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def by_scale(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """A tokenizer's metrics by number of scales, as records whose step is that number."""
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


def by_thickness(metrics: Mapping[str, Any]) -> dict[str, float]:
    """A tokenizer's metrics per band of thickness: `by thickness/iou_volume_thin` and so on."""
    found = metrics.get("by_thickness", {})
    return {
        f"by thickness/{name}_{band}": value for band, part in found.items() for name, value in intervals(part).items()
    }


# --------------------------------------------------------------------------------------------------------------- parts


def given(flags: Any, names: Sequence[str]) -> dict[str, Any]:
    """The values of these flags, without those that are None."""
    return {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}


def dataset_input(path: str | None, fingerprint: str | None) -> DatasetInput | None:
    """The training dataset; None if path or fingerprint is unknown."""
    return DatasetInput(name=location(path).name, fingerprint=fingerprint, path=path) if path and fingerprint else None


def label(dataset: DatasetInput) -> str:
    """Name and shortened fingerprint, for a column."""
    return f"{dataset.name}-{dataset.fingerprint[:SHORT]}"


def models(**paths: str | Path) -> dict[str, Path]:
    """`Card.models`: the local ones of these models, by role. A run in a bucket has no MLflow run beside it."""
    return {role: Path(path) for role, path in paths.items() if not is_remote(path)}


def model_name(model: str | Path) -> str:
    """The run's name for a run or its export; for other folders the folder's name."""
    path = Path(model).expanduser().resolve()
    return path.parent.name + path.name.removeprefix("export") if path.name in ("export", "export-best") else path.name


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- note


def note(card: Card, command: str, results: Mapping[str, str], links: Mapping[str, str], failure: str = "") -> str:
    """The run's description in Markdown: what it is, results, links, where it is, how it was started.

    MLflow shows four lines, more on a click.
    """
    parts = [card.title]
    if failure:
        parts.append(f"**Failed:** {code(failure)}")
    if results:
        parts.append(", ".join(f"{name.replace('_', ' ')} **{value}**" for name, value in results.items()) + ".")
    parts += [f"{role.capitalize()}: {link}." for role, link in links.items()]
    parts.append(f"Output: {code(card.folder)}. Command: {code(command)}.")
    return "\n\n".join(parts)


def code(text: Any) -> str:
    """Text as Markdown code, so that nothing in it becomes markup."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '/').split())}`"
