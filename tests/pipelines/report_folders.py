"""Small hand-made folders of every kind that has a report, with numbers and texts as the stages write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.config import FORMAT_VERSION
from g3pt.data import datasets, records
from pipelines.evaluate.gallery import folder_of, write_gallery
from pipelines.generate.job import MANIFEST
from tests.pipelines.toy_data import TOY, toy_row

BOX_V3 = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.3, 0.3) for z in (-0.4, 0.4)])
BOX_F3 = np.array(
    [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
        [1, 5, 7],
        [1, 7, 3],
    ]
)
ENVIRONMENT = {
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "ray": "2.60.0"},
    "git_commit": "c0ffee",
    "cpu": "A Processor",
    "cores": 2,
    "memory_bytes": 2**33,
    "gpus": [],
}


def make_dataset(folder: Path, caption: str = "a ball", count: int = 21, **credit: str) -> Path:
    """A finished dataset of boxes and balls, some of them failed, all with the same caption and credit."""
    rows = [toy_row(number) for number in range(count)]
    rows = [row | {"caption": caption, "category": "round", **credit} if row["status"] == "ok" else row for row in rows]
    shards = {}
    for index in range(2):
        mine = [row for row in rows if records.shard_index(row["id"], 2) == index]
        shards[index] = datasets.write_shard(
            folder, index, mine, TOY, num_shards=2, seconds={row["id"]: 0.25 for row in mine}
        )
    datasets.write_dataset(folder, TOY, {"toy": 1}, 2, shards)
    return folder


def make_run(folder: Path, stage: str = "cvq", finished: bool = True, num_records: int = 5) -> Path:
    """A run's config.json and ledger, and an export that hashes but does not load."""
    folder.mkdir(parents=True)
    spec = {
        "stage": stage,
        "preset": "nano",
        "seed": 0,
        "paths": {"data": "/data"},
        "config": {"train": {"steps": 50, "batch_size": 4, "learning_rate": 1e-3}},
    }
    (folder / "config.json").write_text(json.dumps(spec))
    kind = "iou" if stage == "cvq" else "ce"
    with open(folder / "metrics.jsonl", "w") as file:
        for number in range(1, num_records + 1):
            record = {
                "step": 40 * number,
                "time": 1.7e9 + number,
                "loss": 1 / number,
                "ce": 2 / number,
                "samples_per_second": 99.5,
            }
            if number % 2:
                record |= {
                    f"val_{kind}": 3 / number,
                    "val_loss": 4 / number,
                    **{f"val_{kind}_scale_{k}": 0.1 * k + 1 / number for k in (1, 2)},
                }
            file.write(json.dumps(record) + "\n")
    if finished:
        (folder / "export").mkdir()
        (folder / "export" / "config.json").write_text(json.dumps({"kind": stage, "format_version": FORMAT_VERSION}))
        (folder / "export" / "model.safetensors").write_bytes(b"weights")
        (folder / "_SUCCESS").touch()
    return folder


def make_generation(folder: Path, text: str = "a chair", error: str = "empty-field: nothing inside") -> Path:
    """One mesh and one failed sample."""
    from g3pt.geometry.files import write_mesh

    (folder / "samples").mkdir(parents=True)
    write_mesh(folder / "a-s0.glb", BOX_V3, BOX_F3)
    shared = {"id": "a", "text": text, "image": "", "cfg": 2.0, "cfg_schedule": "ramp", "top_k": 0, "top_p": 0.95,
              "temperature": 1.0, "resolution": 64,
              "model": "/runs/car", "model_hash": "ab", "sha256": "", "seconds": 0.25,
              "tokens_per_s": 100.5}  # fmt: skip
    rows = [
        shared
        | {"sample": "a-s0", "seed": 7, "file": "a-s0.glb", "vertices": 8, "faces": 12, "status": "ok", "error": ""},
        shared
        | {"sample": "a-s1", "seed": 8, "file": "", "vertices": 0, "faces": 0, "status": "failed", "error": error},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), folder / "manifest.parquet")
    return folder


def make_study(folder: Path, fitted: bool = True, **flags: str) -> Path:
    """A study of four sizes and its laws; without a fit, an unfinished study."""
    from g3pt.scaling.law import report

    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"runs": [{"name": f"r{k}"} for k in range(4)], "flags": flags}))
    make_run(folder / "runs" / "r0", "car")
    if fitted:
        sizes, losses = [1000, 4000, 16000, 64000], [8.0, 7.5, 7.2, 6.8]
        lines = ["size,params_no_embed,flops,seed,samples,epochs,lr,test_ce,test_ce_scale_1,test_ce_scale_2"]
        lines += [
            f"s{k},{n},1e9,0,400,1.5,0.001,{loss},{loss - 1},{loss + 1}"
            for k, (n, loss) in enumerate(zip(sizes, losses, strict=True))
        ]
        (folder / "points.csv").write_text("\n".join(lines) + "\n")
        (folder / "fit.json").write_text(json.dumps(report(sizes, losses)))
    return folder


def make_evaluation(
    file: Path, kind: str = "cvq", export_sha256: str = "ab", caption: str = "a ball", **credit: str
) -> Path:
    """The JSON of an evaluation and its gallery: one object with a mesh and one without."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cloud = toy_row(0)["surface"]
    if kind == "cvq":
        told = {
            "caption": caption,
            "license": "CC-BY-4.0",
            "author": "Ann",
            "attribution_url": "https://example.org/a",
            "source_url": "",
            "iou_near": 0.5,
            **credit,
        }
        gallery = [
            told
            | {
                "id": "toy/0",
                "iou_volume": 0.8125,
                "status": "ok",
                "cloud": cloud,
                "mesh": (BOX_V3, BOX_F3),
                "spread": True,
            },
            told
            | {
                "id": "../../toy",
                "iou_volume": 0.0,
                "status": "empty-field",
                "cloud": cloud,
                "mesh": (BOX_V3[:0], BOX_F3[:0]),
                "worst": 1,
            },
        ]
        metrics: dict[str, Any] = {"num_objects": 2, "num_without_mesh": 1, "iou_volume": 0.40625,
                                   "iou_volume_interval_95": [0.3, 0.5], "iou_near": 0.5,
                                   "chamfer": 0.0371, "normal_consistency": None, "f_score_0.02": 0.25,
                                   "iou_first_1_scales": 0.25, "iou_first_2_scales": 0.40625,
                                   "iou_drop_shuffled_scale_1": 0.375, "iou_drop_shuffled_scale_2": -0.01,
                                   "chamfer_p95": None, "chamfer_median": 0.03, "bits": 1102.5,
                                   "num_detailed": 1, "num_chamfer_by_scale": 1, "chamfer_first_1_scales": 0.08,
                                   "chamfer_first_2_scales": 0.0371,
                                   "continuous_iou_volume": 0.8, "continuous_chamfer": 0.03, "grid_chamfer": 0.06,
                                   "detailed_chamfer": 0.0371, "distinct_chamfer": 0.04, "num_near_duplicates": 1,
                                   "by_thickness": {"thin": {"num_objects": 2, "num_without_mesh": 1,
                                                             "iou_volume": 0.40625, "iou_near": 0.5, "chamfer": 0.0371,
                                                             "f_score_0.02": 0.25}},
                                   "by_category": {"<b>ball": {"num_objects": 2, "iou_volume": 0.40625,
                                                               "chamfer": 0.0371}}}  # fmt: skip
        objects: list[dict[str, Any]] = [{"id": "toy/0", "iou_volume": 0.8125}]
    else:
        gallery = [
            {"id": "sample-s0", "object": 0, "status": "ok", "mesh": (BOX_V3, BOX_F3)},
            {"id": "sample-s1", "object": 1, "status": "full-field", "mesh": (BOX_V3[:0], BOX_F3[:0])},
            {
                "id": "toy/4",
                "image_object": 0,
                "status": "ok",
                "mesh": (BOX_V3, BOX_F3),
                "view": toy_row(4)["views"][0],
                "license": "",
                **credit,
            },
        ]
        metrics = {"num_samples": 2, "num_without_mesh": 1, "family_accuracy": 0.75,
                   "family_accuracy_interval_95": [0.6, 0.85], "family_chance": 0.0625, "num_labelled": 2,
                   "nearest_chamfer_median": 0.05, "nearest_chamfer_median_interval_95": [0.04, 0.06],
                   "held_out_nearest_chamfer_median": 0.03,
                   "nearest_chamfer_of_a_copy": 0.01, "held_out_nearest_family_accuracy": 0.9,
                   "num_held_out": 5}  # fmt: skip
        verdicts = {"family_accuracy": 0.5, "family_accuracy_interval_95": [0.25, 0.75], "attribute_agreement": 0.625,
                    "attribute_agreement_interval_95": [0.5, 0.7],
                    "nearest_chamfer_median": 0.04, "nearest_chamfer_median_interval_95": [0.03, 0.05],
                    "valid_share": 0.5, "num_samples": 64}  # fmt: skip
        metrics |= {"attribute_agreement": 0.8125, "attribute_agreement_interval_95": [0.7, 0.9],
                    "attribute_chance": 0.4375, "num_with_attributes": 2, "all_attributes": 0.5,
                    "all_attributes_interval_95": [0.1, 0.9], "rebuilt_attribute_agreement": 0.95,
                    "rebuilt_attribute_chance": 0.4, "rebuilt_num_with_attributes": 16,
                    "by_attribute": {"<i>size": {"num": 2, "agreement": 0.5, "agreement_interval_95": [0.1, 0.9],
                                                 "chance": 0.25}},
                    "mesh_share": 0.5, "mesh_share_interval_95": [0.1, 0.9], "valid_share": 0.5,
                    "valid_share_interval_95": [0.1, 0.9], "num_faces": 4321.5,
                    "num_faces_interval_95": [4000.0, 5000.0], "statuses": {"full-field": 1, "ok": 1},
                    "copy_share": 0.0, "copy_share_interval_95": [0.0, 0.6], "held_out_copy_share": 0.125,
                    "num_compared": 64, "cov": 0.3125, "cov_interval_95": [0.2, 0.4], "one_nna": 0.875,
                    "one_nna_interval_95": [0.8, 0.9], "mmd": 0.00625, "mmd_interval_95": [0.005, 0.007],
                    "train_cov": 0.5625, "train_one_nna": 0.53125, "train_mmd": 0.00525,
                    "guidance": [verdicts | {"cfg": cfg, "cfg_schedule": schedule} for cfg,
                                 schedule in ((0.0, "ramp"), (2.0, "ramp"), (2.0, "constant"))]}  # fmt: skip
        objects = [
            {
                "text": caption,
                "unseen": bool(k),
                "family": "ball",
                "seed": k,
                "status": "ok",
                "nearest": "toy/3",
                "nearest_family": "ball",
                "chamfer": 0.0456,
                "attributes": {"size": "tall", "base": "<u>four legs"},
                "measured": {"size": "tall", "base": "two panels"} if k else {"size": "tall", "base": "<u>four legs"},
            }
            for k in range(2)
        ]
    found = {
        "kind": kind, "model": {"path": "/runs/x/export", "export_sha256": export_sha256},
        "dataset": {"path": "/data", "fingerprint": "f", "split": "test"},
        "seconds": 12.5, "seconds_per_object": {"codes": 0.125, "codes_interval_95": [0.1, 0.2], "mesh": 0.25,
                                                "mesh_interval_95": None},
                                                "protocol": {"task": "made by hand", "chance": "one in sixteen",
                                                             "sets_cov": "share that is met",
                                                             "dataset_settings": {"resolution": 64}},
                                                             "metrics": metrics, "objects": objects,
        "image_objects": [{"pictured": "toy/4", "family": "ball", "seed": 5, "nearest": "toy/3",
                           "nearest_family": "box", "chamfer": 0.07}],
        "environment": ENVIRONMENT, "gallery": write_gallery(gallery, folder_of(file)),
    }  # fmt: skip
    file.write_text(json.dumps(found))
    return file
