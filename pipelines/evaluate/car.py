"""Evaluation of a generator: does a sample match its prompt, is it a whole object, and is it more than a copy of a
training object?

How: samples with consecutive seeds, none left out, are made from text alone and, as a second protocol, from one picture
of a held-out object alone. Half of the texts are captions of the training split, half are absent from it
(`generator_prompts`). For each sample the nearest training object by Chamfer distance is searched: its family is
compared with the prompted one, and its distance with the same distance of the evaluated split's own objects. For
captions of the procedural shapes every stated attribute is measured on the mesh (`g3pt.shapes.measure`), and also on
held-out objects and their reconstructions, which shows the limits of the measurement and of the tokenizer. Samples and
held-out objects are compared as sets (`generator_sets`). A guidance grid repeats the first prompts at other strengths.
`generator_samples` has the workers, `generator_figures` the summary, `generator_protocol` the description of each
number.
Ours: the protocol, stated in every report. Legend: N objects or samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt import shapes
from g3pt.config import CVQConfig, from_dict
from g3pt.data import reading
from g3pt.data.datasets import DatasetInfo
from g3pt.metrics import pairwise
from g3pt.training.exports import read_export_config
from pipelines.cli.errors import UsageError, bad_input
from pipelines.derive.tokens import check_points
from pipelines.evaluate import generator_figures as figures
from pipelines.evaluate.config import strengths
from pipelines.evaluate.generator_prompts import (
    BATCH,
    GRID_SAMPLES,
    attributes_of,
    batches,
    choose_images,
    choose_prompts,
    drawn_order,
    guidance_points,
    settings,
)
from pipelines.evaluate.generator_protocol import protocol, table
from pipelines.evaluate.generator_samples import (
    NUM_QUERIES,
    Sampler,
    Searcher,
    mesh_figures,
    points,
    read_attributes,
    sampling_floor,
)
from pipelines.evaluate.generator_sets import compare_sets
from pipelines.evaluate.work import map_work

TOLD = (
    "family",
    "seed",
    "status",
    "nearest",
    "nearest_family",
    "chamfer",
    "sampling_floor",
    "copy",
    "num_faces",
    "num_bodies",
    "watertight",
    "attributes",
    "measured",
)

Samples = list[dict[str, Any]]


def evaluate_generator(flags: Any, export: str, info: DatasetInfo) -> dict[str, Any]:
    """Metrics, protocol, table, rows and pictures."""
    with bad_input():
        tokenizer = from_dict(CVQConfig, read_export_config(export)["tokenizer"])
        check_points(info, tokenizer, names=("num_sharp_points",))
    train = reading.load_arrays(info, "train", ("id", "caption", "category", "eval_surface"))
    columns = ("id", "caption", "category", "eval_surface", "surface")
    held = reading.load_arrays(info, flags.split, columns, limit=flags.limit or None)
    if not train["id"]:
        raise UsageError(f"dataset {info.path} has no training object to compare samples with")
    prompts = choose_prompts(train, held, flags.num_samples, flags.seed)
    pictured = choose_images(info, export, held, flags)
    grid = guidance_points(strengths(flags.guidance_grid)) if flags.guidance_grid is not None else []
    rebuilt = choose_rebuilt(info, held, flags)
    work = [
        batches(prompts, flags.seed, flags.num_pictures),
        batches(pictured, flags.seed, flags.num_pictures),
        rebuilt_batches(rebuilt, flags.seed),
    ]
    work += [batches(prompts[:GRID_SAMPLES], flags.seed, settings=point) for point in grid]
    made = make_samples(flags, export, info, work)
    theirs = search_training(flags, train, held, [sample for part in (*made[:2], *made[3:]) for sample in part])
    summary = figures.summarise(made[0], train) | figures.summarise_images(made[1], train) | theirs
    summary |= {"nearest_chamfer_of_a_copy": copy_distance(info, train["id"])}
    if summary["nearest_chamfer_median"] is not None:
        summary["nearest_chamfer_ratio"] = (
            summary["nearest_chamfer_median"] / summary["held_out_nearest_chamfer_median"]
        )
    if rebuilt:
        summary |= ceilings(rebuilt, made[2], info, train)
    clouds = [sample["points"] for sample in made[0] if sample["points"] is not None]
    summary |= compare_sets(
        clouds,
        list(map(points, held["eval_surface"])),
        list(map(points, train["eval_surface"])),
        flags.num_compared,
        flags.seed,
    )
    if grid:
        summary["guidance"] = [
            figures.guidance_point(point, part, train) for point, part in zip(grid, made[3:], strict=True)
        ]
    seconds = figures.seconds_per_object(made[0] + made[1])
    return {
        "protocol": protocol(flags, info, made[0], made[1], summary),
        "metrics": summary,
        "seconds_per_object": seconds,
        "objects": [{name: sample.get(name) for name in ("text", "unseen", *TOLD)} for sample in made[0]],
        "image_objects": [{name: sample.get(name) for name in ("pictured", *TOLD)} for sample in made[1]],
        "pictures": [(*sample["mesh"], sample["text"]) for sample in made[0] if sample["mesh"] is not None],
        "gallery": gallery(made[0], made[1]),
        "columns": 4,
        "table": table(summary, seconds),
    }


def make_samples(flags: Any, export: str, info: DatasetInfo, work: Sequence[list[dict[str, Any]]]) -> list[Samples]:
    """Make the samples of each part of the work with one pool of workers; return one list per part."""
    arguments = (export, settings(flags), flags.resolution, flags.coarse, info.config.num_surface)
    items = [batch for part in work for batch in part]
    results = iter(
        map_work(Sampler, arguments, items, flags, "sample", "samples", [len(batch["prompts"]) for batch in items])
    )
    return [[sample for _ in part for sample in next(results)] for part in work]


def search_training(flags: Any, train: dict[str, Any], held: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Write the nearest training object into each sample; return the same statistics of the held-out objects."""
    own = {object_id: k for k, object_id in enumerate(train["id"])}
    solid = [sample for sample in samples if sample["points"] is not None]
    wanted = [(sample["points"], -1) for sample in solid]
    wanted += [(points(cloud), own.get(name, -1)) for cloud, name in zip(held["eval_surface"], held["id"], strict=True)]
    parts = [wanted[k : k + BATCH] for k in range(0, len(wanted), BATCH)]
    library = [points(cloud) for cloud in train["eval_surface"]]
    nearest = [
        pair
        for part in map_work(Searcher, (library,), parts, flags, "search", "shapes", [len(p) for p in parts], "cpu")
        for pair in part
    ]
    for sample in samples:
        sample |= {"nearest": None, "nearest_family": None, "chamfer": None, "copy": False}
    for sample, (index, distance) in zip(solid, nearest, strict=False):
        copied = figures.is_copy(distance, sample["sampling_floor"])
        sample |= {
            "nearest": train["id"][index],
            "nearest_family": train["category"][index],
            "chamfer": distance,
            "copy": copied,
        }
    theirs = nearest[len(solid) :]
    floors = [sampling_floor(points(a), points(b)) for a, b in zip(held["eval_surface"], held["surface"], strict=True)]
    agree = [train["category"][k] == category for (k, _), category in zip(theirs, held["category"], strict=True)]
    return {
        "num_held_out": len(agree),
        **figures.average("held_out_nearest_chamfer_median", [distance for _, distance in theirs], np.median),
        **figures.share("held_out_nearest_family_accuracy", agree if any(train["category"]) else []),
        **figures.share(
            "held_out_copy_share",
            [figures.is_copy(distance, floor) for (_, distance), floor in zip(theirs, floors, strict=True)],
        ),
    }


def choose_rebuilt(info: DatasetInfo, held: dict[str, Any], flags: Any) -> list[dict[str, Any]]:
    """Rows of at most `num_detailed` held-out objects, in random order, whose captions state attributes."""
    stated = {name for name, caption in zip(held["id"], held["caption"], strict=True) if attributes_of(caption)}
    drawn = [name for name in drawn_order(held, flags.seed) if name in stated][: flags.num_detailed]
    wanted = set(drawn)
    columns = ["id", "caption", "category", "surface", *(["sharp"] if info.config.num_sharp else [])]
    found = {row["id"]: row for row in reading.read_rows(info, columns, flags.split) if row["id"] in wanted}
    return [found[name] for name in drawn]


def rebuilt_batches(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The Sampler's items for reconstructions: objects instead of prompts."""
    prompts = [
        {"text": row["caption"], "family": row["category"], "attributes": attributes_of(row["caption"])} for row in rows
    ]
    found = batches(prompts, seed)
    return [batch | {"rows": rows[k * BATCH : (k + 1) * BATCH]} for k, batch in enumerate(found)]


def ceilings(rows: list[dict[str, Any]], rebuilt: Samples, info: DatasetInfo, train: dict[str, Any]) -> dict[str, Any]:
    """Upper limits: attributes measured on held-out objects' reconstructions and, where they can be made again, on
    their own solids.
    """
    solids = [solid for row in rows if (solid := solid_of(row, info)) is not None]
    found = figures.attribute_scores(rebuilt, train["caption"], prefix="rebuilt_") | figures.validity(
        rebuilt, "rebuilt_"
    )
    return found | figures.attribute_scores(solids, train["caption"], prefix="solid_")


def solid_of(row: dict[str, Any], info: DatasetInfo) -> dict[str, Any] | None:
    """Attributes measured on a procedural object's own solid; None if id and seed of the dataset do not give an object
    with that caption.
    """
    from g3pt.geometry.watertight import watertight

    try:
        shape = shapes.make_shape(row["id"], info.settings.get("seed", 0))
    except ValueError:
        return None
    if shape.caption != row["caption"]:
        return None
    made = info.settings.get("convert", info.settings)
    solid = watertight(
        shape.vertices,
        shape.faces,
        made.get("resolution", 64),
        open_surfaces=made.get("open_surfaces", "wall"),
    )
    told = {"family": shape.family, "attributes": attributes_of(shape.caption)}
    return {
        **told,
        "measured": read_attributes(told, solid.vertices, solid.faces),
        **mesh_figures(solid.vertices, solid.faces),
    }


def gallery(prompted: Samples, pictured: Samples) -> list[dict[str, Any]]:
    """The samples to show.

    `object` (or `image_object`) is the index in `objects` (or `image_objects`) of the row with prompt, seed and result.
    """
    shown = [
        {"id": f"sample-s{sample['seed']}", "object": k, "status": sample["status"], "mesh": sample["mesh"]}
        for k, sample in enumerate(prompted)
        if sample["mesh"] is not None
    ]
    return shown + [
        {
            "id": sample["pictured"],
            **sample["credit"],
            "image_object": k,
            "status": sample["status"],
            "mesh": sample["mesh"],
            "view": sample["image"],
        }
        for k, sample in enumerate(pictured)
        if sample["mesh"] is not None
    ]


def copy_distance(info: DatasetInfo, ids: list[str], count: int = 16) -> float:
    """The Chamfer distance of an exact copy: the median over pairs of independent samples of one training surface."""
    wanted, found = set(ids[:count]), []
    for row in reading.read_rows(info, ["id", "surface", "eval_surface"], "train"):
        if row["id"] in wanted:
            _, distance = pairwise.nearest_objects(
                [row["surface"][:, :3]], [row["eval_surface"][:, :3]], num_queries=NUM_QUERIES
            )
            found.append(distance[0])
    return float(np.median(found))
