"""The metrics of a generator's evaluation: families, attributes, validity, copies, distances, guidance.

How: metrics are functions of the samples' rows (`objects` in the JSON). A prefix says of what (none: samples of texts;
`image_`: of pictures; `held_out_`: held-out objects; `rebuilt_`: the tokenizer's reconstructions of them; `solid_`:
their own solids). A suffix says for which prompts (`_seen`, `_unseen`), or marks the interval (`_interval_95`).
Ours: all of it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt import shapes
from g3pt.metrics import pairwise
from pipelines.evaluate.generator_samples import STAGES
from pipelines.evaluate.near_duplicates import THRESHOLD

Objects = Sequence[dict[str, Any]]
VALIDITY = {
    "mesh": lambda o: o["status"] == "ok",
    "watertight": lambda o: o["watertight"],
    "one_body": lambda o: o["num_bodies"] == 1,
    "valid": lambda o: o["watertight"] and o["num_bodies"] == 1,
}


def share(name: str, verdicts: Sequence[bool]) -> dict[str, Any]:
    """The share of true verdicts and its Wilson interval; both None without verdicts."""
    right = sum(map(bool, verdicts))
    interval = list(pairwise.wilson_interval(right, len(verdicts))) if verdicts else None
    return {name: right / len(verdicts) if verdicts else None, f"{name}_interval_95": interval}


def average(name: str, values: Sequence[float | None], statistic: Any = np.mean) -> dict[str, Any]:
    """The mean (or another statistic) of the values that are not None, and its bootstrap interval; both None without
    values.
    """
    there = np.array([value for value in values if value is not None], dtype=np.float64)
    interval = list(pairwise.bootstrap_interval(there, statistic)) if len(there) else None
    return {name: float(statistic(there)) if len(there) else None, f"{name}_interval_95": interval}


def summarise(objects: Objects, train: dict[str, Any]) -> dict[str, Any]:
    """The metrics of samples made from texts. `train` has category and caption of the training objects."""
    found: dict[str, Any] = {"num_samples": len(objects), "num_without_mesh": sum(o["status"] != "ok" for o in objects)}
    found |= average("nearest_chamfer_median", [o["chamfer"] for o in objects], np.median)
    for suffix, part in (
        ("", objects),
        ("_seen", [o for o in objects if not o["unseen"]]),
        ("_unseen", [o for o in objects if o["unseen"]]),
    ):
        found |= family_scores(part, train["category"], suffix=suffix) | attribute_scores(
            part, train["caption"], suffix=suffix
        )
    if found["family_accuracy"] is not None:
        found["family_accuracy_low_over_chance"] = found["family_accuracy_interval_95"][0] / found["family_chance"]
    return found | {"by_attribute": by_attribute(objects, train["caption"])} | validity(objects) | copies(objects)


def summarise_images(pictured: Objects, train: dict[str, Any]) -> dict[str, Any]:
    """The same metrics for samples made from pictures, with prefix `image_`; without samples only their number, 0."""
    if not pictured:
        return {"image_num_samples": 0}
    return {
        "image_num_samples": len(pictured),
        "image_num_without_mesh": sum(o["status"] != "ok" for o in pictured),
        **average("image_nearest_chamfer_median", [o["chamfer"] for o in pictured], np.median),
        **family_scores(pictured, train["category"], prefix="image_"),
        **attribute_scores(pictured, train["caption"], prefix="image_"),
        **validity(pictured, "image_"),
        **copies(pictured, "image_"),
    }


def family_scores(part: Objects, train_families: Sequence[str], prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """The share of samples whose nearest training object is of their family, its interval, and chance."""
    labelled = [o for o in part if o["family"]]  # objects without a category have no verdict
    shares = {family: train_families.count(family) / len(train_families) for family in set(train_families)}
    return {
        f"{prefix}num_labelled{suffix}": len(labelled),
        **share(f"{prefix}family_accuracy{suffix}", [o["nearest_family"] == o["family"] for o in labelled]),
        f"{prefix}family_chance{suffix}": float(np.mean([shares.get(o["family"], 0.0) for o in labelled]))
        if labelled
        else None,
    }


def agreement(o: dict[str, Any]) -> list[bool]:
    """For each attribute stated by the prompt, whether it is measured on the mesh."""
    return [o["measured"].get(slot) == value for slot, value in o["attributes"].items()]


def attribute_scores(
    part: Objects, train_captions: Sequence[str], prefix: str = "", suffix: str = ""
) -> dict[str, Any]:
    """Mean over samples of the share of the prompt's attributes found on the mesh; the share of samples with all of
    them; chance.
    """
    stated = [o for o in part if o.get("attributes")]
    chances = value_shares(train_captions)
    chance = [
        np.mean([chances.get((o["family"], slot), {}).get(value, 0.0) for slot, value in o["attributes"].items()])
        for o in stated
    ]
    return {
        f"{prefix}num_with_attributes{suffix}": len(stated),
        **average(f"{prefix}attribute_agreement{suffix}", [float(np.mean(agreement(o))) for o in stated]),
        f"{prefix}attribute_chance{suffix}": float(np.mean(chance)) if stated else None,
        **share(f"{prefix}all_attributes{suffix}", [all(agreement(o)) for o in stated]),
    }


def by_attribute(objects: Objects, train_captions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same for each attribute alone, over all families: name -> num, agreement, interval, chance."""
    chances, verdicts, chance = value_shares(train_captions), dict[str, list[bool]](), dict[str, list[float]]()
    for o in objects:
        for slot, value in (o.get("attributes") or {}).items():
            verdicts.setdefault(slot, []).append(o["measured"].get(slot) == value)
            chance.setdefault(slot, []).append(chances.get((o["family"], slot), {}).get(value, 0.0))
    return {
        slot: {"num": len(part), **share("agreement", part), "chance": float(np.mean(chance[slot]))}
        for slot, part in sorted(verdicts.items())
    }


def value_shares(train_captions: Sequence[str]) -> dict[tuple[str, str], dict[str, float]]:
    """(family, attribute) -> {value: its share among the family's training objects}."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    known = shapes.all_captions()
    for caption in train_captions:
        if caption in known:
            family, values = known[caption]
            for slot, value in values.items():
                counts.setdefault((family, slot), Counter())[value] += 1
    return {key: {value: n / count.total() for value, n in count.items()} for key, count in counts.items()}


def validity(objects: Objects, prefix: str = "") -> dict[str, Any]:
    """Shares of samples with a mesh, watertight, with one body, and both; mean number of faces; counts by status."""
    found: dict[str, Any] = {}
    for name, holds in VALIDITY.items():
        found |= share(f"{prefix}{name}_share", [holds(o) for o in objects])
    return {
        **found,
        **average(f"{prefix}num_faces", [o["num_faces"] for o in objects if o["status"] == "ok"]),
        f"{prefix}statuses": dict(sorted(Counter(o["status"] for o in objects).items())),
    }


def is_copy(chamfer: float | None, floor: float | None) -> bool:
    """Whether a surface equals a training object's as far as points can show: its distance minus that of two samples of
    itself is small.
    """
    return chamfer is not None and floor is not None and chamfer - floor < THRESHOLD


def copies(objects: Objects, prefix: str = "") -> dict[str, Any]:
    """Number and share of samples that copy a training object."""
    verdicts = [o["copy"] for o in objects]
    return {f"{prefix}num_copies": sum(verdicts), **share(f"{prefix}copy_share", verdicts)}


def seconds_per_object(samples: Objects) -> dict[str, Any]:
    """Mean wall seconds per stage, with intervals; `codes` is the share of a batch."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        found |= average(stage, [s["seconds"][stage] for s in samples if "seconds" in s])
    return found


def guidance_point(settings: dict[str, Any], objects: Objects, train: dict[str, Any]) -> dict[str, Any]:
    """One point of the guidance grid: its settings and metrics."""
    return {
        **settings,
        "num_samples": len(objects),
        **family_scores(objects, train["category"]),
        **attribute_scores(objects, train["caption"]),
        **average("nearest_chamfer_median", [o["chamfer"] for o in objects], np.median),
        **validity(objects),
        **copies(objects),
    }
