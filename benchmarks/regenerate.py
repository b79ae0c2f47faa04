"""Regeneration of a few real objects by a generator that was overfit to them, from captions and from pictures.

    python jobs/preprocess.py --source dir --input MESHES --ids FIFTY.txt --output out/fifty --resolution 128 --views 4
    python jobs/train_car.py --data out/fifty --tokenizer weights/g3pt-nano-cvq --output out/runs --preset nano
        --steps 3000
    python benchmarks/regenerate.py --data out/fifty --model out/runs/car-nano-s0-XXXXXXXX [--output regenerate.json]

Two Chamfer distances to the object's surface (an independent sample of 16,384 points) are compared: that of the sample
and that of the tokenizer's reconstruction from the true codes, which no generator over this tokenizer can improve on.
The aim is a mean of at most 1.5 times that bound. The picture is one of the training views. All objects count; a sample
without a mesh is a miss and is named.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.gate import distance
from benchmarks.machine import about
from g3pt.data import datasets, reading
from g3pt.metrics import pairwise
from g3pt.models.car import G3PT
from g3pt.models.decoding import decode_meshes
from g3pt.models.sampling import SampleConfig
from g3pt.training.exports import find_export
from pipelines.derive import tokens
from pipelines.evaluate.job import draw_pictures

AIM = 1.5
WAYS = ("caption", "picture", "both")


def objects(data: str, model_export: str) -> dict[str, Any]:
    """The training objects and the codes that the generator was trained on."""
    info = datasets.open_dataset(data)
    arrays = reading.load_arrays(info, "train", ("id", "caption", "eval_surface", "views"))
    config = json.loads((find_export(model_export) / "config.json").read_text(encoding="utf-8"))
    stored = tokens.load_codes(info, f"tokens-{config['tokenizer_hash'][:8]}")
    return arrays | {"codes": [stored[i] for i in arrays["id"]]}


@torch.inference_mode()
def samples(model: G3PT, arrays: dict[str, Any], settings: SampleConfig) -> dict[str, torch.Tensor]:
    """Sampled codes (N, S) by kind of prompt."""
    pictures = [bytes(views[0]) for views in arrays["views"]]
    absent = [None] * len(pictures)
    prompts = {
        "caption": (arrays["caption"], absent),
        "picture": (absent, pictures),
        "both": (arrays["caption"], pictures),
    }
    ways = WAYS if model.image is not None else WAYS[:1]
    return {way: model.sample_codes(*prompts[way], range(len(pictures)), settings) for way in ways}


def measured(
    model: G3PT, codes_S: torch.Tensor, surface_P6: np.ndarray, resolution: int
) -> tuple[float | None, tuple[np.ndarray, np.ndarray]]:
    """Chamfer distance to the object's surface, and the mesh; None for both without a surface."""
    (mesh,) = decode_meshes(model.tokenizer, model.tokenizer.decode_latents(codes_S[None]), resolution)
    shape = (mesh.vertices, mesh.faces)
    return (distance(*shape, surface_P6) if mesh.status == "ok" else None), shape


def summary(rows: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Ratio of the means, and the number of objects within the aim; a sample without a mesh is not."""
    both = [row for row in rows if row[way] is not None and row["bound"] is not None]
    ratios = np.array([row[way] / row["bound"] for row in both])
    return {
        "ratio_of_means": float(np.mean([row[way] for row in both]) / np.mean([row["bound"] for row in both])),
        "ratio_interval_95": list(pairwise.bootstrap_interval(ratios, np.mean)),
        "within_aim": int((ratios <= AIM).sum()),
        "without_mesh": len(rows) - len(both),
        "codes_equal": float(np.mean([row[f"{way}_codes_equal"] for row in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True, help="finished CAR run on that dataset")
    parser.add_argument("--cfg", type=float, default=SampleConfig.cfg)
    parser.add_argument("--cfg-schedule", default=SampleConfig.cfg_schedule)
    parser.add_argument("--resolution", type=int, default=64, help="of the meshes")
    parser.add_argument("--num-pictures", type=int, default=12, help="objects in the picture")
    parser.add_argument("--output", type=Path, default=Path("regenerate.json"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    model = G3PT.from_pretrained(flags.model).eval()
    arrays = objects(flags.data, flags.model)
    drawn = samples(model, arrays, SampleConfig(cfg=flags.cfg, cfg_schedule=flags.cfg_schedule))
    rows, pictures = [], []
    for k, caption in enumerate(arrays["caption"]):
        surface, true_S = arrays["eval_surface"][k], torch.from_numpy(arrays["codes"][k].astype(np.int64))
        row: dict[str, Any] = {"id": arrays["id"][k], "caption": caption}
        row["bound"], shape = measured(model, true_S, surface, flags.resolution)
        shapes = [(*shape, f"{caption[:30]}: codes {row['bound'] or float('nan'):.3f}")]
        for way, codes_NS in drawn.items():
            row[way], shape = measured(model, codes_NS[k], surface, flags.resolution)
            row[f"{way}_codes_equal"] = float((codes_NS[k] == true_S).float().mean())
            shapes.append((*shape, f"{way} {row[way] or float('nan'):.3f}"))
        rows.append(row)
        pictures += shapes if k < flags.num_pictures else []
    found = {way: summary(rows, way) for way in drawn}
    for way, value in found.items():
        low, high = value["ratio_interval_95"]
        print(f"from {way}: Chamfer {value['ratio_of_means']:.2f} times the tokenizer's (mean of ratios {low:.2f} to "
              f"{high:.2f}); {value['within_aim']} of {len(rows)} objects within {AIM}; {value['without_mesh']} "
              f"without a mesh; codes equal {value['codes_equal']:.3f}")  # fmt: skip
    flags.output.write_text(
        json.dumps(
            {"machine": about("torch"), "flags": vars(flags) | {"output": str(flags.output)}, **found, "objects": rows},
            indent=1,
        ),
        encoding="utf-8",
    )
    draw_pictures(pictures, flags.output.with_suffix(".png"), len(pictures), 1 + len(drawn))


if __name__ == "__main__":
    main()
