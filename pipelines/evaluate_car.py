"""Generation from prompts: is a sample of the prompted family, and is it more than a copy of a training object?

How: samples with consecutive seeds, none left out, from text alone and, as a second protocol, from one picture of a held-out object alone. Half of the texts are captions of the training split, half are absent from it (from
the evaluated split, then unseen attribute combinations). Each sample's surface is searched among the training objects by Chamfer:
the nearest one's family is the verdict, its distance is compared with the same distance of the evaluated split's own objects.
Ours: the protocol, stated in every report. Legend: N objects or samples.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from g3pt import metrics, reading, shapes
from g3pt.checkpoint import read_export_config
from g3pt.conditions import NONE
from g3pt.datasets import DatasetInfo
from pipelines.errors import UsageError
from pipelines.evaluate_cvq import CREDITS
from pipelines.failures import doing

BATCH = 8  # the sampler's own batch size, so that codes equal those of `generate`
NUM_QUERIES = 2048


def evaluate_generator(flags: Any, export: Path, info: DatasetInfo) -> dict[str, Any]:
    """Metrics, protocol, table, rows and pictures."""
    from pipelines.evaluate import map_work

    train = reading.load_arrays(info, "train", ("id", "caption", "category", "eval_surface"))
    held = reading.load_arrays(info, flags.split, ("id", "caption", "category", "eval_surface"))
    held = {name: values[: flags.limit or None] for name, values in held.items()}
    if not train["id"]:
        raise UsageError(f"dataset {info.path} has no training object to compare samples with")
    prompts = choose_prompts(train, held, flags.num_samples, flags.seed)
    pictured = choose_images(info, export, held, flags)
    batches = _batches(prompts, flags.seed) + _batches(pictured, flags.seed)
    arguments = (
        str(export),
        settings(flags),
        flags.resolution,
        flags.coarse,
        info.config.num_surface,
        flags.num_pictures,
    )
    samples = [
        sample
        for part in map_work(Sampler, arguments, batches, flags, "sample", "samples", [len(b["prompts"]) for b in batches])
        for sample in part
    ]
    return score(flags, info, train, held, samples)


def _batches(prompts: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The Sampler's work: prompts with seeds rising by one; `start` is the number of the batch's first."""
    return [
        {
            "prompts": prompts[k : k + BATCH],
            "seeds": list(range(seed + k, seed + min(k + BATCH, len(prompts)))),
            "start": k,
        }
        for k in range(0, len(prompts), BATCH)
    ]


def settings(flags: Any) -> dict[str, Any]:
    """The sampling flags that were given; the rest is the sampler's default."""
    return {
        name: getattr(flags, name)
        for name in ("cfg", "top_k", "top_p", "temperature")
        if getattr(flags, name) is not None
    }


def choose_prompts(train: dict[str, Any], held: dict[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` prompts, alternately seen in training and absent from it; {text, family, unseen}. All seen if none can be absent."""
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
        prompts.append(
            {
                "text": text,
                "family": shapes.caption_family(text) if procedural else family_of[text],
                "unseen": is_unseen,
            }
        )
    return prompts


def choose_images(info: DatasetInfo, export: Path, held: dict[str, Any], flags: Any) -> list[dict[str, Any]]:
    """Up to `num_image_samples` held-out objects in drawn order, each once: {text: None, image, family, pictured, credit}."""
    refusal = image_refusal(info, export)
    if not flags.num_image_samples or refusal:
        print(f"evaluate: no samples from pictures: {refusal or '--num-image-samples 0'}", file=sys.stderr)
        return []
    family_of = dict(zip(held["id"], held["category"], strict=True))
    drawn = [held["id"][k] for k in np.random.default_rng(flags.seed).permutation(len(held["id"]))]
    wanted = set(drawn[: flags.num_image_samples])
    rows = reading.read_rows(info, ["id", "views", *CREDITS], flags.split)
    found = {row["id"]: row for row in rows if row["id"] in wanted and len(row["views"])}
    return [
        {"text": None, "image": bytes(found[i]["views"][0]), "family": family_of[i], "pictured": i, "credit": {name: found[i][name] for name in CREDITS}}
        for i in drawn
        if i in found
    ]


def image_refusal(info: DatasetInfo, export: Path) -> str | None:
    """Why no sample can be made from a picture, if so."""
    if read_export_config(export)["model"]["image_encoder"] == NONE:
        return "the model reads no images"
    return None if info.config.num_views else "the dataset has no views"


class Sampler:
    """A generator held by one worker; `run` makes the samples of one batch."""

    def __init__(
        self, export: str, values: dict[str, Any], resolution: int, coarse: int, num_points: int, num_pictures: int
    ) -> None:
        from g3pt.car import G3PT
        from g3pt.sampling import SampleConfig
        from pipelines.cluster import torch_device

        self.model = G3PT.from_pretrained(export).to(torch_device())
        self.settings = SampleConfig(**values)
        self.resolution, self.coarse, self.num_points, self.num_pictures = resolution, coarse, num_points, num_pictures

    def run(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """One dict a sample: prompt, seed, status, points (P, 3), and the mesh where a picture is wanted."""
        import torch

        texts = [prompt["text"] for prompt in batch["prompts"]]
        images = [prompt.get("image") for prompt in batch["prompts"]]
        seeds = f"{batch['seeds'][0]} to {batch['seeds'][-1]}"
        with doing(f"drawing the samples of seeds {seeds}"), torch.inference_mode():
            codes_BS = self.model.sample_codes(texts, images, batch["seeds"], self.settings, batch=BATCH)
            return [self._sample(batch, k, codes_S) for k, codes_S in enumerate(codes_BS)]

    def _sample(self, batch: dict[str, Any], k: int, codes_S: Any) -> dict[str, Any]:
        from g3pt.decoding import decode_meshes
        from g3pt.geometry.surface import sample_surface

        tokenizer = self.model.tokenizer
        (decoded,) = decode_meshes(tokenizer, tokenizer.decode_latents(codes_S[None]), self.resolution, self.coarse)
        vertices, faces = decoded.vertices, decoded.faces
        surface = None
        if len(faces):
            surface = points(sample_surface(vertices, faces, self.num_points, np.random.default_rng(batch["seeds"][k])))
        mesh = (vertices, faces) if batch["start"] + k < self.num_pictures else None
        prompt = {name: value for name, value in batch["prompts"][k].items() if name != "image" or mesh is not None}
        return {**prompt, "seed": batch["seeds"][k], "status": decoded.status, "points": surface, "mesh": mesh}


class Searcher:
    """The training objects' points held by one worker; `run` finds the nearest one of each cloud of a part."""

    def __init__(self, library: list[np.ndarray]) -> None:
        self.library = library

    def run(self, part: list[tuple[np.ndarray, int]]) -> list[tuple[int, float]]:
        """(cloud, index of the training object that is not to be found, or -1) -> (index, Chamfer)."""
        clouds, exclude = [cloud for cloud, _ in part], [own for _, own in part]
        indices, distances = metrics.nearest_objects(clouds, self.library, num_queries=NUM_QUERIES, exclude=exclude)
        return list(zip(indices.tolist(), distances.tolist(), strict=True))


def score(
    flags: Any, info: DatasetInfo, train: dict[str, Any], held: dict[str, Any], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    """Search samples and held-out objects among the training objects, and sum up."""
    from pipelines.evaluate import map_work

    own = {object_id: k for k, object_id in enumerate(train["id"])}
    solid = [sample for sample in samples if sample["points"] is not None]
    wanted = [(sample["points"], -1) for sample in solid]
    wanted += [
        (points(cloud), own.get(object_id, -1))
        for cloud, object_id in zip(held["eval_surface"], held["id"], strict=True)
    ]
    parts = [wanted[k : k + BATCH] for k in range(0, len(wanted), BATCH)]
    library = [points(cloud) for cloud in train["eval_surface"]]
    nearest = [
        pair for part in map_work(Searcher, (library,), parts, flags, "search", "shapes", [len(p) for p in parts], "cpu") for pair in part
    ]
    for sample, (index, distance) in zip(solid, nearest, strict=False):
        sample |= {"nearest": train["id"][index], "nearest_family": train["category"][index], "chamfer": distance}
    names = ("family", "seed", "status", "nearest", "nearest_family", "chamfer")
    objects = [{name: sample.get(name) for name in ("text", "unseen", *names)} for sample in samples if "pictured" not in sample]
    pictured = [{name: sample.get(name) for name in ("pictured", *names)} for sample in samples if "pictured" in sample]
    agree = [
        train["category"][k] == category
        for (k, _), category in zip(nearest[len(solid) :], held["category"], strict=True)
    ]
    summary = summarise(objects, train["category"]) | summarise_images(pictured, train["category"]) | {
        "held_out_nearest_chamfer_median": float(np.median([distance for _, distance in nearest[len(solid) :]])),
        "held_out_nearest_family_accuracy": float(np.mean(agree)) if any(train["category"]) else None,
        "num_held_out": len(agree),
        "nearest_chamfer_of_a_copy": copy_distance(info, train["id"]),
    }
    if summary["nearest_chamfer_median"] is not None:
        summary["nearest_chamfer_ratio"] = (
            summary["nearest_chamfer_median"] / summary["held_out_nearest_chamfer_median"]
        )
    pictures = [(*sample["mesh"], sample["text"][:42]) for sample in samples if sample["mesh"] is not None and "pictured" not in sample]
    return {
        "protocol": protocol(flags, info, objects, pictured),
        "metrics": summary,
        "objects": objects,
        "image_objects": pictured,
        "pictures": pictures,
        "gallery": gallery(samples),
        "columns": 4,
        "table": table(summary),
    }


def gallery(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples to show: `object` (or `image_object`) is the row of `objects` (or `image_objects`) that tells prompt, seed and verdict."""
    prompted = [sample for sample in samples if "pictured" not in sample]
    pictured = [sample for sample in samples if "pictured" in sample]
    shown = [
        {"id": f"sample-s{sample['seed']}", "object": k, "status": sample["status"], "mesh": sample["mesh"]}
        for k, sample in enumerate(prompted)
        if sample["mesh"] is not None
    ]
    return shown + [
        {"id": sample["pictured"], **sample["credit"], "image_object": k, "status": sample["status"], "mesh": sample["mesh"], "view": sample["image"]}
        for k, sample in enumerate(pictured)
        if sample["mesh"] is not None
    ]


def points(cloud: np.ndarray) -> np.ndarray:
    """The positions of stored surface points."""
    return cloud[:, :3].astype(np.float32)


def copy_distance(info: DatasetInfo, ids: list[str], count: int = 16) -> float:
    """The Chamfer that an exact copy would have: two independent samples of the same training surfaces, median."""
    wanted, found = set(ids[:count]), []
    for row in reading.read_rows(info, ["id", "surface", "eval_surface"], "train"):
        if row["id"] in wanted:
            _, distance = metrics.nearest_objects(
                [row["surface"][:, :3]], [row["eval_surface"][:, :3]], num_queries=NUM_QUERIES
            )
            found.append(distance[0])
    return float(np.median(found))


def summarise(objects: list[dict[str, Any]], train_families: list[str]) -> dict[str, Any]:
    """Family accuracy with chance and Wilson's interval, for all, seen and unseen prompts; nearest-training distances."""
    distances = [o["chamfer"] for o in objects if o["chamfer"] is not None]
    found: dict[str, Any] = {
        "num_samples": len(objects),
        "num_without_mesh": sum(o["status"] != "ok" for o in objects),
        "nearest_chamfer_median": float(np.median(distances)) if distances else None,
        "nearest_chamfer_median_interval_95": list(metrics.bootstrap_interval(np.array(distances), np.median))
        if distances
        else None,
    }
    for name, part in (
        ("", objects),
        ("_seen", [o for o in objects if not o["unseen"]]),
        ("_unseen", [o for o in objects if o["unseen"]]),
    ):
        found |= family_scores(part, train_families, suffix=name)
    if found["family_accuracy"] is not None:
        found["family_accuracy_low_over_chance"] = found["family_accuracy_interval_95"][0] / found["family_chance"]
    return found


def summarise_images(pictured: list[dict[str, Any]], train_families: list[str]) -> dict[str, Any]:
    """The same verdicts for samples made from pictures, under names of their own; nothing if there are none."""
    if not pictured:
        return {"image_num_samples": 0}
    distances = [o["chamfer"] for o in pictured if o["chamfer"] is not None]
    return {
        "image_num_samples": len(pictured),
        "image_num_without_mesh": sum(o["status"] != "ok" for o in pictured),
        "image_nearest_chamfer_median": float(np.median(distances)) if distances else None,
        **family_scores(pictured, train_families, prefix="image_"),
    }


def family_scores(part: list[dict[str, Any]], train_families: list[str], prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """Share of samples whose nearest training object is of their family, Wilson's interval, and chance."""
    labelled = [o for o in part if o["family"]]
    accuracy, interval, chance = (f"{prefix}family_{name}" for name in (f"accuracy{suffix}", f"accuracy{suffix}_interval_95", f"chance{suffix}"))
    found: dict[str, Any] = {f"{prefix}num_labelled{suffix}": len(labelled), accuracy: None, interval: None, chance: None}
    if labelled:  # else a dataset without categories: no verdict
        right = sum(o["nearest_family"] == o["family"] for o in labelled)
        shares = {family: train_families.count(family) / len(train_families) for family in set(train_families)}
        found[accuracy] = right / len(labelled)
        found[interval] = list(metrics.wilson_interval(right, len(labelled)))
        found[chance] = float(np.mean([shares.get(o["family"], 0.0) for o in labelled]))
    return found


def protocol(
    flags: Any, info: DatasetInfo, samples: list[dict[str, Any]], pictured: list[dict[str, Any]]
) -> dict[str, Any]:
    """How each number was made."""
    images = "no samples from pictures"
    if pictured:
        images = (
            f"image_*: {len(pictured)} samples, each from the first view of another object of split {flags.split!r}, no text, "
            f"seeds {pictured[0]['seed']} to {pictured[-1]['seed']}, verdicts as for text"
        )
    return {
        **{name: metrics.PROTOCOL[name] for name in ("box", "chamfer")},
        "task": "generation from text; samples uncurated, none left out, not moved or scaled before comparison",
        "prompts": f"{sum(not s['unseen'] for s in samples)} captions of the training split, {sum(s['unseen'] for s in samples)} absent from it, in turn",
        "seeds": [samples[0]["seed"], samples[-1]["seed"]],
        "images": images,
        "sampling": settings(flags) or "the sampler's defaults",
        "iso_surface": f"logit 0 on a grid of {flags.resolution} cells a side, from {flags.coarse} refined near the surface, floaters below 1 % of the area removed",
        "surface_points": f"{NUM_QUERIES} of a side look for their nearest among all {info.config.num_surface} of the other",
        "family_accuracy": "share of samples whose nearest training object by Chamfer is of the prompted family; no mesh counts as wrong",
        "chance": "the training split's share of the prompted family, mean over prompts (a nearest object drawn at random)",
        "interval": "Wilson, 95 %; medians: 95 % percentile bootstrap, 1000 resamples, seed 0",
        "nearest_search": "192 points a side rank all training objects, the first 8 are compared in full",
        "held_out": f"objects of split {flags.split!r}, searched among training objects in the same way; nearest_chamfer_of_a_copy is the floor",
        "dataset_settings": info.settings,
    }


def table(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows that people read."""

    def accuracy(suffix: str, prefix: str = "") -> str:
        name = f"{prefix}family_accuracy{suffix}"
        if found[name] is None:
            return "no prompt has a family"
        low, high = found[f"{name}_interval_95"]
        return f"{found[name]:.3f} ({low:.3f} to {high:.3f}), chance {found[f'{prefix}family_chance{suffix}']:.3f}"

    pictured = f"{accuracy('', 'image_')}, {found['image_num_samples']} samples" if found["image_num_samples"] else "no samples"

    ceiling = found["held_out_nearest_family_accuracy"]
    median = "none" if found["nearest_chamfer_median"] is None else f"{found['nearest_chamfer_median']:.4f}"
    return [
        ("samples", f"{found['num_samples']} ({found['num_without_mesh']} without a mesh)"),
        ("family of nearest training object", accuracy("")),
        ("  prompts seen in training", accuracy("_seen")),
        ("  prompts absent from training", accuracy("_unseen")),
        ("  given a held-out picture, no text", pictured),
        ("  the same for held-out objects", "none" if ceiling is None else f"{ceiling:.3f}"),
        (
            "nearest training Chamfer, median",
            f"{median}; held-out objects {found['held_out_nearest_chamfer_median']:.4f}; a copy {found['nearest_chamfer_of_a_copy']:.4f}",
        ),
    ]
