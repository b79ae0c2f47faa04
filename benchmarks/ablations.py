"""Ablations of the tokenizer: each choice's effect on reconstruction and on a small generator trained on its codes.

    python benchmarks/ablations.py --data DATASET --output FOLDER --rows nano,lfq,single [--seeds 0,1,2]
        [--steps 900] [--car-steps 900]
    python benchmarks/ablations.py --output FOLDER          # print the table of finished rows
    python benchmarks/ablations.py --list                   # the rows and what they change

Each row is preset nano with the changes listed in ROWS, trained on the same data for the same number of optimiser
steps, which include the two phases before the quantised one. Figures are of the test split. CPU seconds are those of
this process, one thread. With --car-steps, a text-only CAR of preset nano is trained on the codes and gives:
  nats        cross-entropy of a test object's codes given its caption, summed over its tokens
  completion  IoU if the first k scales are the object's own and CAR samples the rest (k = 0: from the caption alone)
  family      share of samples whose nearest training object has the prompted family; Chamfer: median distance to that
              object
Finished rows are skipped, so the same command resumes. Runs are in FOLDER/runs; FOLDER has one JSON file per row and
seed.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.rows import row_parser, rows_asked
from g3pt.config import car_preset, cvq_preset
from g3pt.data import datasets, reading, records
from g3pt.metrics import pairwise
from g3pt.training.exports import read_export_config
from pipelines.runs.ledger import Ledger
from pipelines.train import run
from pipelines.train.jobs import car_spec, cvq_spec

FEW = (1, 2, 3, 79)
ROWS: dict[str, dict[str, Any]] = {
    "nano": {},
    # schedules with (nearly) the same number of tokens
    "scales-96%": {"scales": FEW},  # the paper's shape: nearly all tokens in one parallel guess
    "scales-ratio2": {"scales": (1, 2, 5, 10, 21, 46)},  # geometric, ratio about 2
    "scales-6": {"scales": (1, 4, 9, 16, 32, 64)},
    # controls
    "single": {"scales": (85,)},
    "single-groups": {"scales": (5,) * 17, "resampling": "slices"},
    "pooled": {"resampling": "pooled"},
    "rvq": {"scales": (21,) * 4, "resampling": "pooled"},
    # quantisers
    "lfq": {"quantizer": "lfq"},
    "fsq-625": {"fsq_levels": (5, 5, 5, 5)},
    "fsq-125": {"fsq_levels": (5, 5, 5)},
    # what the latents read
    "learned": {"latent_queries": "learned"},
    "blur.4": {"anchor_blur": 0.4},
    "blur.8": {"anchor_blur": 0.8},
    "sharp": {"num_points": 768, "num_sharp_points": 256},
    "points-2048": {"num_points": 2048},
    "heads-2": {"num_heads": 2},
    "fourier-4": {"num_fourier": 4},
    "latents-128": {"scales": (1, 4, 16, 128)},
    # losses and phases
    "no-commitment": {"commitment_weight": 0.0},
    "early": {"continuous_share": 0.05, "pyramid_share": 0.25},
    "late": {"continuous_share": 0.2, "pyramid_share": 0.5},
    "no-phase-a": {"continuous_share": 0.0, "pyramid_share": 0.0},
    "continuous": {"continuous_share": 1.0, "pyramid_share": 0.0, "stat_freeze_share": 0.0},
    # how a trained tokenizer encodes
    "encode-1024": {"num_encode_points": 1024},
    "encode-16384": {"num_encode_points": 16384},
}
READS = {"num_encode_points"}  # changes that need no training
KNOWN = 64  # test objects whose codes are completed


def run_row(name: str, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Train one row and return its figures."""
    model, config = cvq_preset(flags.preset)
    model = dataclasses.replace(model, **ROWS[name])
    started = time.process_time()
    trained = cvq_preset(flags.preset)[0] if set(ROWS[name]) <= READS else model
    spec = cvq_spec(flags.data, flags.preset, trained, varied(config, flags.steps, seed))
    run_dir = run.train_run(spec, flags.output / "runs", num_workers=0)
    row = {
        "row": name,
        "seed": seed,
        "steps": spec.config["train"]["steps"],
        "cvq_seconds": time.process_time() - started,
        "run": str(run_dir),
    }
    row |= {"scales": list(model.scales), "changes": ROWS[name], "records": val_curve(run_dir)}
    row |= last_record(run_dir)
    if trained != model:
        run_dir = reread(run_dir, model, flags.output / "runs" / f"{run_dir.name}-{name}")
        row |= diagnosed(run_dir, flags.data)
    if flags.car_steps and model.continuous_share < 1:
        row |= generator(run_dir, seed, flags)
    return row


def reread(run_dir: Path, model: Any, target: Path) -> Path:
    """The figures of trained weights under a configuration that only encodes differently."""
    from g3pt.models.tokenizer import CVQ

    tokenizer = CVQ.from_pretrained(run_dir)
    tokenizer.config = tokenizer.encoder.config = model
    tokenizer.save_pretrained(target)
    return target


def diagnosed(export: Path, data: str) -> dict[str, float]:
    """Test figures of an export, under the names that a run's ledger uses."""
    from g3pt.models.diagnostics import diagnose
    from g3pt.models.tokenizer import CVQ
    from pipelines.train.cvq import EVAL_COLUMNS

    arrays = reading.load_arrays(data, "test", EVAL_COLUMNS)
    return {f"test_{name}": value for name, value in diagnose(CVQ.from_pretrained(export), arrays).items()}


def varied(config: Any, steps: int | None, seed: int) -> Any:
    steps = steps or config.steps
    return dataclasses.replace(
        config,
        steps=steps,
        seed=seed,
        log_every=min(20, steps),
        eval_every=max(20, steps // 5 // 20 * 20),
        checkpoint_every=max(100, steps // 4),
    )


def last_record(run_dir: Path) -> dict[str, float]:
    """The test figures in the last record of a run's ledger."""
    record = Ledger.of(run_dir).read()[-1]
    return {key: value for key, value in record.items() if key.startswith(("test_", "val_"))}


def val_curve(run_dir: Path) -> list[tuple[float, float]]:
    """(samples, validation IoU of the continuous latents) of each evaluation."""
    found = Ledger.of(run_dir).read()
    return [(r["step"], r["val_iou_continuous"]) for r in found if "val_iou_continuous" in r]


def generator(tokenizer: Path, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Train a small CAR on this tokenizer's codes and return its figures."""
    from pipelines.derive.tokens import encode_dataset
    from pipelines.evaluate.config import EvaluateFlags
    from pipelines.evaluate.job import evaluate

    encode_dataset(flags.data, tokenizer, use_ray=False)
    model, config = car_preset(flags.car_preset)
    model = dataclasses.replace(model, image_encoder="none")
    started = time.process_time()
    spec = car_spec(flags.data, str(tokenizer), tokenizer.name, model, varied(config, flags.car_steps, seed))
    run_dir = run.train_run(spec, flags.output / "runs", num_workers=0)
    row = {"car_seconds": time.process_time() - started, "car_run": str(run_dir)}
    test = last_record(run_dir)
    scales = read_export_config(tokenizer)["model"]["scales"]
    row["nats"] = sum(t * test[f"test_ce_scale_{k}"] for k, t in enumerate(scales, start=1))
    row["nats_by_scale"] = [test[f"test_ce_scale_{k}"] for k in range(1, len(scales) + 1)]
    row["completion"] = completion(run_dir, flags.data)
    output = flags.output / "evaluations" / f"{run_dir.name}.json"
    evaluate(
        EvaluateFlags(
            model=str(run_dir),
            data=flags.data,
            output=str(output),
            num_samples=flags.samples,
            num_image_samples=0,
            resolution=64,
            num_pictures=12,
        )
    )
    found = json.loads(output.read_text(encoding="utf-8"))["metrics"]
    return row | {
        "family": found["family_accuracy"],
        "family_interval": found["family_accuracy_interval_95"],
        "chamfer": found["nearest_chamfer_median"],
    }


@torch.inference_mode()
def completion(run_dir: Path, data: str) -> list[float]:
    """Mean IoU over the first test objects if their first k scales are given, for k = 0 to all."""
    from g3pt.models.car import G3PT
    from g3pt.models.sampling import SampleConfig, sample_codes
    from g3pt.training.exports import find_export
    from pipelines.derive.tokens import load_codes, tokens_kind

    model = G3PT.from_pretrained(find_export(run_dir)).eval()
    info = datasets.open_dataset(data)
    arrays = reading.load_arrays(info, "test", ("id", "caption", "volume_points", "volume_occupancy"))
    tokenizer = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["paths"]["tokenizer"]
    codes = load_codes(info, tokens_kind(tokenizer))
    ids = arrays["id"][:KNOWN]
    codes_BS = torch.from_numpy(np.stack([codes[i] for i in ids]).astype(np.int64))
    text_BC, image = model.encode_prompts(arrays["caption"][:KNOWN], [None] * len(ids))
    found = []
    for k in range(len(model.scales) + 1):
        if k not in (0, 1, 2, 3, len(model.scales) // 2, len(model.scales)):
            continue
        drawn_BS = sample_codes(
            model, text_BC, image, range(len(ids)), SampleConfig(), known_BS=codes_BS[:, : sum(model.scales[:k])]
        )
        points_BQ3 = torch.from_numpy(arrays["volume_points"][:KNOWN, :4096].astype(np.float32))
        inside_BQ = np.stack([records.unpack_occupancy(packed)[:4096] for packed in arrays["volume_occupancy"][:KNOWN]])
        guess_BQ = (
            torch.cat(
                [
                    model.tokenizer.occupancy_logits(model.tokenizer.decode_latents(c), p)
                    for c, p in zip(drawn_BS.split(16), points_BQ3.split(16), strict=True)
                ]
            )
            > 0
        )
        found.append(
            float(np.mean([pairwise.volume_iou(g, t) for g, t in zip(guess_BQ.numpy(), inside_BQ, strict=True)]))
        )
    return found


def table(folder: Path) -> str:
    """Markdown table of all finished rows; several seeds give the mean and half the range."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-s*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        rows.setdefault((row["row"], row["steps"]), []).append(row)
    lines = [
        "| row | steps | seeds | CPU s | IoU by first k scales | continuous | agreement | nats | completion | family "
        "| Chamfer |",
        "|" + "---|" * 11,
    ]
    order = list(ROWS)
    for (name, steps), found in sorted(
        rows.items(), key=lambda item: (order.index(item[0][0]) if item[0][0] in order else len(order), item[0])
    ):
        lines.append("| " + " | ".join(cells(name, steps, found)) + " |")
    return "\n".join(lines)


def cells(name: str, steps: int, found: list[dict[str, Any]]) -> list[str]:
    def over(key: str, digits: int = 3) -> str:
        values = [row[key] for row in found if row.get(key) is not None]
        if not values:
            return ""
        spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    def by_scale(key: str, digits: int = 3) -> str:
        shown = range(1, len(found[0]["scales"]) + 1)
        shown = shown if len(shown) <= 8 else (1, len(shown) // 2, len(shown))
        return " ".join(over(f"{key}_scale_{k}", digits).split(" ")[0] for k in shown)

    completed = [
        np.mean([row["completion"][k] for row in found if "completion" in row])
        for k in range(len(found[0].get("completion", [])))
    ]
    return [name, str(steps), str(len(found)), over("cvq_seconds", 0),
            by_scale("test_iou") + (" (" + over("test_iou") + ")" if len(found) > 1 else ""),
            over("test_iou_continuous"),
            by_scale("test_agreement", 2), over("nats", 0), " ".join(f"{v:.3f}" for v in completed), over("family"),
            over("chamfer", 4)]  # fmt: skip


def main() -> None:
    parser = row_parser(__doc__, "out/ablations")
    parser.add_argument("--preset", default="nano", help="tokenizer preset that the rows change")
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of a tokenizer")
    parser.add_argument("--car-preset", default="nano")
    parser.add_argument("--car-steps", type=int, default=0, help="optimiser steps of a generator; 0 for none")
    parser.add_argument("--samples", type=int, default=128, help="of each generator")
    flags = parser.parse_args()
    for name, seed, path in rows_asked(flags, ROWS):
        if path.exists() and (not flags.car_steps or "nats" in json.loads(path.read_text(encoding="utf-8"))):
            continue
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        row = run_row(name, seed, flags)
        row["cvq_seconds"] = before.get("cvq_seconds", row["cvq_seconds"])
        path.write_text(json.dumps(row, indent=1), encoding="utf-8")
        print(table(flags.output).splitlines()[0], " | ".join(cells(name, flags.steps, [row])), sep="\n", flush=True)
    print(table(flags.output))


if __name__ == "__main__":
    main()
