"""Gate for a tokenizer: a small CAR overfits a few objects and regenerates each from its caption.

    python benchmarks/gate.py --data DATASET --tokenizer RUN [--num 16] [--steps 600] [--output gate.json]

The objects are spread evenly over the training split, ordered by id, and have different captions. Two Chamfer distances
to the object's surface are compared, by the evaluator's protocol: that of the generated mesh and that of the
tokenizer's reconstruction from the true codes. The tokenizer passes if the mean of the first is at most 1.5 times the
mean of the second. The picture shows the input, the reconstruction and the sample of each object.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from g3pt.config import car_preset
from g3pt.data import reading
from g3pt.geometry.surface import sample_surface
from g3pt.metrics import pairwise
from g3pt.models.car import G3PT
from g3pt.models.decoding import decode_meshes
from g3pt.models.encoding import encode, encoded_columns
from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import find_export
from g3pt.training.fit import fit
from pipelines.evaluate.cvq import cloud_mesh
from pipelines.evaluate.job import draw_pictures
from pipelines.train.car_batches import ConditionedCodes

BOUND = 1.5


def objects(data: str, tokenizer: CVQ, num: int) -> dict[str, Any]:
    """`num` training objects with different captions, and their codes."""
    columns = ("id", "caption", "surface", "eval_surface", *encoded_columns(tokenizer.config))
    arrays = reading.load_arrays(data, "train", tuple(dict.fromkeys(columns)))
    first = {caption: k for k, caption in reversed(list(enumerate(arrays["caption"]))) if caption}
    every = sorted(first.values())
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, min(num, len(every))).astype(int)]
    arrays = {name: [values[k] for k in chosen] for name, values in arrays.items()}
    read = [{name: arrays[name][k] for name in encoded_columns(tokenizer.config)} for k in range(len(chosen))]
    return arrays | {"codes": encode(tokenizer, read)}


def overfit(tokenizer: CVQ, arrays: dict[str, Any], preset: str, steps: int) -> G3PT:
    """Train a generator on these objects alone, without dropping conditions."""
    model_config, train = car_preset(preset)
    torch.manual_seed(0)
    model = G3PT(dataclasses.replace(model_config, image_encoder="none", drop_both=0.0), tokenizer)
    data = ConditionedCodes(
        model, {"id": arrays["id"], "caption": arrays["caption"], "codes": np.stack(arrays["codes"])}
    )
    batch = data.batch(list(range(len(data))), [0] * len(data))
    train = dataclasses.replace(train, steps=steps, batch_size=len(data), log_every=max(1, steps // 6))

    def tell(record: dict[str, float]) -> None:
        shown = " ".join(f"{record[f'ce_scale_{k}']:.3f}" for k in range(1, len(model.scales) + 1))
        print(f"step {record['step'] // len(data):5}  cross-entropy by scale {shown}", flush=True)

    def forever(_: int) -> Any:
        while True:
            yield batch

    return fit(model=model, batches=forever, config=train, report=tell)


@torch.inference_mode()
def measure(model: G3PT, arrays: dict[str, Any], resolution: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Measure each object: a row of figures and three pictures."""
    from g3pt.models.sampling import SampleConfig

    drawn_BS = model.sample_codes(
        arrays["caption"], [None] * len(arrays["id"]), range(len(arrays["id"])), SampleConfig(cfg=0.0)
    )
    rows, pictures = [], []
    for k, caption in enumerate(arrays["caption"]):
        true_S = torch.from_numpy(arrays["codes"][k])
        row: dict[str, Any] = {
            "id": arrays["id"][k],
            "caption": caption,
            "codes_equal": float((drawn_BS[k] == true_S).float().mean()),
        }
        pictures.append((*cloud_mesh(arrays["eval_surface"][k]), caption[:40]))
        for name, codes_S in (("reconstruction", true_S), ("sample", drawn_BS[k])):
            (mesh,) = decode_meshes(model.tokenizer, model.tokenizer.decode_latents(codes_S[None]), resolution)
            row[name] = distance(mesh.vertices, mesh.faces, arrays["eval_surface"][k]) if mesh.status == "ok" else None
            pictures.append(
                (mesh.vertices, mesh.faces, f"{name} {row[name]:.4f}" if row[name] else f"{name} {mesh.status}")
            )
        rows.append(row)
    return rows, pictures


def distance(vertices: np.ndarray, faces: np.ndarray, surface_P6: np.ndarray) -> float:
    sampled = sample_surface(vertices, faces, len(surface_P6), np.random.default_rng(0))
    return pairwise.chamfer(sampled[:, :3], surface_P6[:, :3].astype(np.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True, help="finished CVQ run")
    parser.add_argument("--num", type=int, default=16, help="objects")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--preset", default="nano", help="of the generator")
    parser.add_argument("--resolution", type=int, default=64, help="of the meshes")
    parser.add_argument("--output", type=Path, default=Path("gate.json"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = CVQ.from_pretrained(find_export(flags.tokenizer)).eval()
    arrays = objects(flags.data, tokenizer, flags.num)
    model = overfit(tokenizer, arrays, flags.preset, flags.steps)
    rows, pictures = measure(model, arrays, flags.resolution)
    both = [row for row in rows if row["reconstruction"] is not None and row["sample"] is not None]
    means = {
        name: float(np.mean([row[name] for row in both])) if both else None for name in ("reconstruction", "sample")
    }
    ratio = means["sample"] / means["reconstruction"] if both else None
    passed = ratio is not None and len(both) == len(rows) and ratio <= BOUND
    for row in rows:
        print(
            f"  {row['caption'][:48]:48} reconstruction {row['reconstruction'] or float('nan'):.4f}  sample "
            f"{row['sample'] or float('nan'):.4f}  codes equal {row['codes_equal']:.2f}"
        )
    print(
        f"gate {'passed' if passed else 'FAILED'}: Chamfer {means['sample']} of samples against "
        f"{means['reconstruction']} of reconstructions, {len(both)} of {len(rows)} with both meshes; ratio {ratio}"
    )
    flags.output.write_text(
        json.dumps(
            {
                "passed": passed,
                "ratio": ratio,
                **means,
                "scales": tokenizer.config.scales,
                "steps": flags.steps,
                "objects": rows,
            },
            indent=1,
        ),
        encoding="utf-8",
    )
    draw_pictures(pictures, flags.output.with_suffix(".png"), len(pictures), 6)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
