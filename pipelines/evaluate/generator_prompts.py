"""The prompts of a generator's evaluation: texts, half of them absent from training, pictures of held-out objects, and
settings.

Ours: all of it, stated in the evaluation's protocol (`pipelines.evaluate.generator_protocol`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from g3pt import shapes
from g3pt.data import reading
from g3pt.data.datasets import DatasetInfo
from g3pt.models.encoders import NONE
from g3pt.training.exports import read_export_config
from pipelines.cli.errors import UsageError
from pipelines.preprocess.credits import CREDITED

BATCH = 8  # the sampler's own batch size, so that codes equal those of `generate`
SCHEDULES = ("ramp", "constant")
GRID_SAMPLES = 64


def choose_prompts(train: dict[str, Any], held: dict[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` prompts {text, family, unseen, attributes}, alternately seen in training and absent from it; all seen if
    none can be absent.
    """
    family_of = {
        caption: category
        for part in (train, held)
        for caption, category in zip(part["caption"], part["category"], strict=True)
        if caption
    }
    seen = sorted({caption for caption in train["caption"] if caption})
    if not seen:
        raise UsageError("the training split has no captions: nothing to prompt the generator with")
    unseen = sorted({caption for caption in held["caption"] if caption} - set(seen))
    procedural = set(seen) <= set(shapes.all_captions())
    random = np.random.default_rng(seed)
    seen = [seen[k] for k in random.permutation(len(seen))]
    unseen = [unseen[k] for k in random.permutation(len(unseen))]
    half = count // 2
    if procedural and len(unseen) < half:
        more = [c for c in shapes.unseen_captions(seen, len(shapes.all_captions()), seed) if c not in unseen]
        unseen += list(dict.fromkeys(more))[: half - len(unseen)]
    prompts = []
    for k in range(count):
        pool, is_unseen = (unseen, True) if k % 2 and unseen else (seen, False)
        text = pool[k // 2 % len(pool)]
        family = shapes.caption_family(text) if procedural else family_of[text]
        prompts.append({"text": text, "family": family, "unseen": is_unseen, "attributes": attributes_of(text)})
    return prompts


def attributes_of(caption: str | None) -> dict[str, str] | None:
    """The visible attributes stated by a caption of the procedural shapes; None for other captions."""
    return shapes.caption_attributes(caption) if caption in shapes.all_captions() else None


def choose_images(info: DatasetInfo, export: Path, held: dict[str, Any], flags: Any) -> list[dict[str, Any]]:
    """Up to `num_image_samples` held-out objects in random order, each once, as prompts {text: None, image, family,
    attributes, pictured, credit}.
    """
    refusal = image_refusal(info, export)
    if not flags.num_image_samples or refusal:
        print(f"evaluate: no samples from pictures: {refusal or '--num-image-samples 0'}", file=sys.stderr)
        return []
    told = dict(zip(held["id"], zip(held["category"], held["caption"], strict=True), strict=True))
    drawn = drawn_order(held, flags.seed)
    wanted = set(drawn[: flags.num_image_samples])
    rows = reading.read_rows(info, ["id", "views", *CREDITED], flags.split)
    found = {row["id"]: row for row in rows if row["id"] in wanted and len(row["views"])}
    return [
        {
            "text": None, "image": bytes(found[i]["views"][0]), "family": told[i][0],
            "attributes": attributes_of(told[i][1]), "pictured": i,
            "credit": {name: found[i][name] for name in CREDITED},
        }
        for i in drawn
        if i in found
    ]  # fmt: skip


def drawn_order(held: dict[str, Any], seed: int) -> list[str]:
    """The held-out objects' ids in random order."""
    return [held["id"][k] for k in np.random.default_rng(seed).permutation(len(held["id"]))]


def image_refusal(info: DatasetInfo, export: Path) -> str | None:
    """Why no sample can be made from a picture; None if one can."""
    if read_export_config(export)["model"]["image_encoder"] == NONE:
        return "the model reads no images"
    return None if info.config.num_views else "the dataset has no views"


def batches(
    prompts: Sequence[dict[str, Any]], seed: int, num_meshes: int = 0, settings: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The Sampler's items: prompts with consecutive seeds. The first `num_meshes` samples keep their meshes."""
    return [
        {
            "prompts": list(prompts[k : k + BATCH]),
            "seeds": list(range(seed + k, seed + min(k + BATCH, len(prompts)))),
            "num_meshes": max(0, num_meshes - k),
            "settings": settings or {},
        }
        for k in range(0, len(prompts), BATCH)
    ]


def settings(flags: Any) -> dict[str, Any]:
    """The sampling flags that were given; the sampler has defaults for the others."""
    return {
        name: getattr(flags, name)
        for name in ("cfg", "top_k", "top_p", "temperature")
        if getattr(flags, name) is not None
    }


def guidance_points(strengths: Sequence[float]) -> list[dict[str, Any]]:
    """The settings of a guidance grid: each strength with each schedule; strength 0 once."""
    return [
        {"cfg": cfg, "cfg_schedule": schedule}
        for cfg in strengths
        for schedule in SCHEDULES
        if cfg > 0 or schedule == SCHEDULES[0]
    ]
