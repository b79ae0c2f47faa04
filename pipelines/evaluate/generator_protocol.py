"""The protocol of a generator's evaluation (how each number was made), and the table that is printed."""

from collections.abc import Sequence
from typing import Any

from g3pt.data.datasets import DatasetInfo
from g3pt.metrics import pairwise
from pipelines.evaluate import generator_sets
from pipelines.evaluate.generator_prompts import BATCH, GRID_SAMPLES, settings
from pipelines.evaluate.generator_samples import NUM_QUERIES
from pipelines.evaluate.near_duplicates import THRESHOLD


def protocol(
    flags: Any,
    info: DatasetInfo,
    samples: Sequence[dict[str, Any]],
    pictured: Sequence[dict[str, Any]],
    found: dict[str, Any],
) -> dict[str, Any]:
    """How each number was made; keys are names of numbers or of kinds of numbers."""
    images = "no samples from pictures"
    if pictured:
        images = (
            f"image_*: {len(pictured)} samples, each from the first view of a different object of split "
            f"{flags.split!r}, "
            f"without text, seeds {pictured[0]['seed']} to {pictured[-1]['seed']}; scored like samples of texts, with "
            "the "
            "attributes of the pictured object's caption"
        )
    num_unseen = sum(sample["unseen"] for sample in samples)
    return {
        **{name: pairwise.PROTOCOL[name] for name in ("box", "chamfer")},
        "task": "generation from text; samples uncurated, none left out, neither moved nor scaled before comparison",
        "prompts": f"{len(samples) - num_unseen} captions of the training split and {num_unseen} absent from it, "
        "alternating",
        "seeds": [samples[0]["seed"], samples[-1]["seed"]],
        "images": images,
        "sampling": settings(flags) or "the sampler's defaults",
        "iso_surface": f"logit 0 on a grid of {flags.resolution} cells per side, refined near the surface from "
        f"{flags.coarse}; floaters below 1 % of the area removed",
        "surface_points": f"for {NUM_QUERIES} points of each surface the nearest among all {info.config.num_surface} "
        f"of the other is searched",
        "family_accuracy": "share of samples whose nearest training object by Chamfer is of the prompted family; a "
        "sample without a mesh counts as wrong",
        "chance": "share of the prompted family in the training split, mean over prompts (a random training object)",
        "interval": "shares: Wilson, 95 %; means and medians: 95 % percentile bootstrap over objects, 1000 resamples, "
        "seed 0",
        "nearest_search": "all training objects are ranked by 192 points per surface; the first 8 are compared in full",
        "held_out": f"objects of split {flags.split!r}, searched among training objects in the same way; "
        "nearest_chamfer_of_a_copy is the lower limit",
        **attribute_protocol(flags, found),
        "validity": "shares of all samples, after removal of floaters; watertight: every edge has two faces that run "
        "along it in opposite directions, and the volume is positive; one body: one connected component; valid: both; "
        "num_faces: mean over samples with a mesh",
        "copies": "the Chamfer distance to the nearest training object, minus that between two samples of the sample's "
        f"own surface, is below {THRESHOLD:g}; held_out_copy_share: the same for the split's own objects",
        **generator_sets.protocol(found, flags.split),
        "seconds_per_object": f"wall seconds on one worker: codes (share of a batch of {BATCH}), mesh (decoding and "
        "extraction), checks (surface points, validity, attributes)",
        **guidance_protocol(flags),
        "dataset_settings": info.settings,
    }


def attribute_protocol(flags: Any, found: dict[str, Any]) -> dict[str, str]:
    """The protocol of the attributes, if prompts state any."""
    if not found["num_with_attributes"]:
        return {"attributes": "prompts are not captions of the procedural shapes: no attributes to measure on a mesh"}
    words = {
        "attributes": "each attribute stated by the prompt is measured on the mesh by the rules of the prompted family "
        "(g3pt/shapes/measure.py), which know extents, slices and counts but not the prompt; attribute_agreement: "
        "share "
        "of attributes that agree, mean over samples; all_attributes: share of samples whose attributes all agree; for "
        "a sample without a mesh none agrees; meshes of another family are measured in the same way",
        "attribute_chance": "share of the prompted value among the family's training objects, mean (a random training "
        "object of the right family)",
    }
    if found.get("rebuilt_num_with_attributes"):
        words["rebuilt"] = (
            f"rebuilt_*: {found['rebuilt_num_with_attributes']} objects of split {flags.split!r} reconstructed by the "
            "tokenizer and measured in the same way: the limit of its codes"
        )
    if found.get("solid_num_with_attributes"):
        words["solid"] = "solid_*: the same objects' own solids, made again from their ids: the limit of the rules"
    return words


def guidance_protocol(flags: Any) -> dict[str, str]:
    """The protocol of the guidance grid, if one was requested."""
    if flags.guidance_grid is None:
        return {}
    return {
        "guidance": f"the first {min(GRID_SAMPLES, flags.num_samples)} prompts with their seeds at each strength; "
        f"ramp: from 0 at the first scale to the strength at the last; constant: the same at all scales; 0: no "
        f"guidance. Cross-entropy is measured without guidance and is not part of this"
    }


def interval(found: dict[str, Any], name: str, spec: str = ".3f") -> str:
    """`0.812 (0.750 to 0.861)`, or `none`."""
    if found.get(name) is None:
        return "none"
    low, high = found[f"{name}_interval_95"]
    return f"{found[name]:{spec}} ({low:{spec}} to {high:{spec}})"


def table(found: dict[str, Any], seconds: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the printed table."""

    def accuracy(suffix: str, prefix: str = "") -> str:
        name = f"{prefix}family_accuracy{suffix}"
        if found[name] is None:
            return "no prompt has a family"
        return f"{interval(found, name)}, chance {found[f'{prefix}family_chance{suffix}']:.3f}"

    pictured = (
        f"{accuracy('', 'image_')}, {found['image_num_samples']} samples"
        if found["image_num_samples"]
        else "no samples"
    )
    median = "none" if found["nearest_chamfer_median"] is None else f"{found['nearest_chamfer_median']:.4f}"
    rows = [
        ("samples", f"{found['num_samples']} ({found['num_without_mesh']} without a mesh)"),
        ("watertight and one body", interval(found, "valid_share")),
        ("family of nearest training object", accuracy("")),
        ("  prompts seen in training", accuracy("_seen")),
        ("  prompts absent from training", accuracy("_unseen")),
        ("  from a held-out picture, no text", pictured),
        ("  the same for held-out objects", interval(found, "held_out_nearest_family_accuracy")),
        *attribute_rows(found),
        (
            "nearest training Chamfer, median",
            f"{median}; held-out objects {found['held_out_nearest_chamfer_median']:.4f}; a copy "
            f"{found['nearest_chamfer_of_a_copy']:.4f}",
        ),
        (
            "copies of training objects",
            f"{interval(found, 'copy_share')}; held-out objects {found['held_out_copy_share']:.3f}",
        ),
    ]
    if found["num_compared"]:
        label = f"{found['num_compared']} samples and held-out objects"
        rows += [
            (f"{label}: COV", against_training(found, "cov", ".3f")),
            ("  1-NNA (.5 is best)", against_training(found, "one_nna", ".3f")),
            ("  MMD", against_training(found, "mmd", ".5f")),
        ]
    if seconds.get("codes") is not None:
        rows.append(("seconds per object: codes / mesh", f"{seconds['codes']:.2f} / {seconds['mesh']:.2f}"))
    return rows + guidance_rows(found)


def against_training(found: dict[str, Any], name: str, spec: str) -> str:
    """A metric of the samples, and of training objects in their place."""
    train = f"; training objects {found[f'train_{name}']:{spec}}" if found.get(f"train_{name}") is not None else ""
    return interval(found, name, spec) + train


def attribute_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows about attributes, if prompts state any."""
    if not found["num_with_attributes"]:
        return []
    rows = [
        (
            "attributes of the prompt found on the mesh",
            f"{interval(found, 'attribute_agreement')}, chance {found['attribute_chance']:.3f}",
        )
    ]
    rows += [
        (f"  prompts {words} training", interval(found, f"attribute_agreement_{which}"))
        for which, words in (("seen", "seen in"), ("unseen", "absent from"))
    ]
    bounds = [
        f"{words} {found[name]:.3f}"
        for name, words in (
            ("rebuilt_attribute_agreement", "through the tokenizer"),
            ("solid_attribute_agreement", "as they are"),
        )
        if found.get(name) is not None
    ]
    return rows + (
        [(f"  {found['rebuilt_num_with_attributes']} held-out objects", ", ".join(bounds))] if bounds else []
    )


def guidance_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """One row per point of the guidance grid."""
    return [
        (
            f"guidance {point['cfg']:g} {point['cfg_schedule'] if point['cfg'] else ''}".rstrip(),
            f"family {interval(point, 'family_accuracy')}, attributes {interval(point, 'attribute_agreement')}, "
            f"Chamfer {interval(point, 'nearest_chamfer_median', '.4f')}",
        )
        for point in found.get("guidance", [])
    ]
