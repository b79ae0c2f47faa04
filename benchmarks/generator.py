"""Ablations of the generator on small data: head, attention, embeddings, AdaLN, loss weights, guidance.

    python benchmarks/generator.py --data DATASET --tokenizer RUN --output FOLDER --rows default,bits,power0
        [--steps 600]
    python benchmarks/generator.py --output FOLDER          # print the table of finished rows
    python benchmarks/generator.py --list                   # the rows and what they change

Each row is a CAR of one preset with the changes listed in ROWS. All rows train on the same codes of the same tokenizer
in the same order for the same number of steps, with text alone except in the rows about pictures. Changes that are no
option of the package are made here (CONTROLS). Figures:
  nats        cross-entropy of a test object's codes given its caption, summed over its tokens
  family      share of samples whose nearest training object has the prompted family, with Wilson's 95 % interval; half
              of the captions are absent from training. Nearest is by IoU of occupancies at fixed points, decoded from
              codes
  short       the same for prompts with attributes left out (`g3pt.data.captions.shorten`), a quarter of them with all
              left out
  attributes  share of the stated attributes found on the first samples' meshes at 64 cells, for captions in training
              and not (procedural shapes only)
  pictures    share of samples with the family of the test object whose first view was given, and share of its
              attributes
  Chamfer     median distance of the first samples' surfaces, at 32 cells, to the stored surface of the nearest object
Samples are drawn with each value of GUIDANCE and the same seeds. CPU seconds are those of this process, one thread.
Finished rows are skipped.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import row_parser, rows_asked
from g3pt.config import car_preset
from g3pt.data import reading
from g3pt.data.captions import shorten
from g3pt.data.datasets import open_dataset
from g3pt.data.pictures import prepare_image
from g3pt.geometry.surface import sample_surface
from g3pt.metrics import pairwise
from g3pt.models.attention import Causal, KVCache, UnitAttention, block_causal
from g3pt.models.car import G3PT
from g3pt.models.decoding import decode_meshes
from g3pt.models.sampling import SampleConfig
from g3pt.shapes import caption_family
from g3pt.shapes.measure import measure_any
from g3pt.training.fit import fit
from pipelines.derive.tokens import encode_dataset, load_codes, tokens_kind
from pipelines.evaluate.generator_prompts import attributes_of, choose_prompts
from pipelines.train.car import CARStage
from pipelines.train.jobs import car_spec

EVEN = {"drop_both": 0.25, "drop_text": 0.25, "drop_image": 0.25}
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "joint": {"head": "joint"},
    "bits": {"head": "bits"},
    "drop_phrases.5": {"drop_phrases": 0.5},
    "progressive.5": {"progressive_share": 0.5},
    "power0": {"scale_loss_power": 0.0},
    "power1": {"scale_loss_power": 1.0},
    "pictures": {"image_encoder": "small"},
    "pictures_even": {"image_encoder": "small", **EVEN, "image_text_weight": 0.0},
    "pictures_aligned": {"image_encoder": "small", **EVEN, "image_text_weight": 1.0},
    "plain_attention": {},
    "no_levels": {},
    "no_positions": {},
    "added_text": {},
}
GUIDANCE = {
    "ramp 2": SampleConfig(cfg=2.0, cfg_schedule="ramp"),
    "constant 2": SampleConfig(cfg=2.0, cfg_schedule="constant"),
    "constant 1": SampleConfig(cfg=1.0, cfg_schedule="constant"),
}
SHORT = ("ramp 2", "constant 2")  # guidance for shortened prompts
NUM_POINTS = 1024  # points at which occupancies are compared
NUM_MESHES = 32  # samples whose surface is compared
NUM_MEASURED = 64  # samples whose attributes are measured
JUDGES: dict[str, Any] = {}  # filled once per process


def plain_attention(model: G3PT) -> None:
    """Scale dot products by the root of the head width, as GPT-2 does, instead of using unit vectors
    and a learned scale.
    """
    for block in model.car.blocks:
        block.attention.log_scale_H.requires_grad_(False)
        width = block.attention.to_out.in_features // block.attention.num_heads
        block.attention.forward = functools.partial(dot_product_attention, block.attention, 1 / math.sqrt(width))


def dot_product_attention(
    attention: UnitAttention, scale: float, x_BND: Tensor, causal: Causal | None = None, cache: KVCache | None = None
) -> Tensor:
    """`UnitAttention.forward` without its norm."""
    query, key, value = attention.to_qkv(x_BND).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if cache is not None:
        key, value = cache.append(key, value)
    return attention.to_out(
        block_causal(query * scale, key, value, causal or Causal((x_BND.shape[1],))).transpose(1, 2).flatten(2)
    )


def without(name: str, model: G3PT) -> None:
    """An embedding that is always zero."""
    getattr(model.car, name).requires_grad_(False).zero_()


def added_text(model: G3PT) -> None:
    """Add the text vector to every input token instead of using AdaLN."""
    car, known = model.car, []
    embed, condition = car.embed, car.condition

    def keep(text_BC: Tensor, image_BMC: Tensor | None) -> Tensor:
        known[:] = [condition(text_BC, image_BMC)]
        return torch.zeros_like(known[0])

    car.condition, car.embed = keep, lambda *given: embed(*given) + known[0][:, None]


CONTROLS: dict[str, Callable[[G3PT], None]] = {
    "plain_attention": plain_attention,
    "no_levels": functools.partial(without, "levels"),
    "no_positions": functools.partial(without, "positions"),
    "added_text": added_text,
}


class Judge:
    """Finds the training object nearest to a sample, both decoded by the tokenizer."""

    def __init__(self, stage: CARStage, data: str, tokenizer: str) -> None:
        info = open_dataset(data)
        self.tokenizer, codes = stage.model.tokenizer, load_codes(info, tokens_kind(tokenizer))
        self.train = reading.load_arrays(data, "train", ("id", "caption", "category", "eval_surface"))
        views = ("views",) * (info.config.num_views > 0)
        self.held = reading.load_arrays(data, "test", ("id", "caption", "category", *views))
        self.points_Q3 = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(NUM_POINTS) * 1.9 - 0.95
        self.inside_NQ = self.occupancies(
            torch.from_numpy(np.stack([codes[i] for i in self.train["id"]]).astype(np.int64))
        )
        held_BS = torch.from_numpy(np.stack([codes[i] for i in self.held["id"]]).astype(np.int64))
        self.ceiling = float(
            np.mean(
                [
                    self.train["category"][k] == c
                    for k, c in zip(self.nearest(held_BS), self.held["category"], strict=True)
                ]
            )
        )

    @torch.inference_mode()
    def occupancies(self, codes_BS: Tensor) -> Tensor:
        """Occupancies (B, Q) at the fixed points, as 0.0 and 1.0."""
        parts = [
            self.tokenizer.occupancy_logits(
                self.tokenizer.decode_latents(part), self.points_Q3.expand(len(part), -1, -1)
            )
            for part in codes_BS.split(16)
        ]
        return (torch.cat(parts) > 0).float()

    def nearest(self, codes_BS: Tensor) -> list[int]:
        """Index of the training object with the largest IoU for each row."""
        inside_BQ = self.occupancies(codes_BS)
        common_BN = inside_BQ @ self.inside_NQ.T
        union_BN = inside_BQ.sum(1)[:, None] + self.inside_NQ.sum(1) - common_BN
        return (common_BN / union_BN.clamp_min(1)).argmax(1).tolist()

    def family(self, codes_BS: Tensor, families: list[str]) -> dict[str, Any]:
        """Share of rows with the prompted family, with its interval."""
        right = [
            self.train["category"][k] == family for k, family in zip(self.nearest(codes_BS), families, strict=True)
        ]
        return {"share": float(np.mean(right)), "interval": list(pairwise.wilson_interval(sum(right), len(right)))}

    def chamfer(self, codes_BS: Tensor) -> float | None:
        """Median distance of the first rows' surfaces to their nearest object; None if none has a surface."""
        meshes = decode_meshes(self.tokenizer, self.tokenizer.decode_latents(codes_BS[:NUM_MESHES]), 32, 16)
        found = []
        for mesh, k in zip(meshes, self.nearest(codes_BS[:NUM_MESHES]), strict=True):
            if len(mesh.faces):
                cloud = sample_surface(mesh.vertices, mesh.faces, 2048, np.random.default_rng(0))[:, :3]
                found.append(pairwise.chamfer(cloud, self.train["eval_surface"][k][:2048, :3].astype(np.float64)))
        return float(np.median(found)) if found else None

    def attributes(self, codes_BS: Tensor, prompts: list[dict[str, Any]]) -> dict[str, float]:
        """Share of the stated attributes found on the first rows' meshes, for captions in training and not."""
        found: dict[str, list[bool]] = {"seen": [], "unseen": []}
        meshes = decode_meshes(self.tokenizer, self.tokenizer.decode_latents(codes_BS[:NUM_MEASURED]), 64, 16)
        for mesh, prompt in zip(meshes, prompts, strict=False):
            shown = measure_any(prompt["family"], mesh.vertices, mesh.faces) if len(mesh.faces) else {}
            found["unseen" if prompt["unseen"] else "seen"] += [
                shown.get(slot) == value for slot, value in (prompt["attributes"] or {}).items()
            ]
        return {name: float(np.mean(hits)) for name, hits in found.items() if hits}


def short_prompts(prompts: list[str]) -> list[str]:
    """Each prompt with some attributes left out, every fourth with all left out."""
    found = []
    for k, text in enumerate(prompts):
        short = shorten(text, np.random.default_rng([0, k]) if k % 4 else None)
        found.append(short if short != text else shorten(text, None))
    return found


def run_row(name: str, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Train one row and return its figures."""
    model, train = car_preset(flags.preset)
    model = dataclasses.replace(model, **{"image_encoder": "none"} | ROWS[name])
    train = dataclasses.replace(train, steps=flags.steps, seed=seed, log_every=50, eval_every=flags.steps)
    started, records = time.process_time(), []
    stage = CARStage(car_spec(flags.data, flags.tokenizer, flags.preset, model, train))
    with torch.no_grad():
        CONTROLS.get(name, lambda model: None)(stage.model)
    fit(
        model=stage.model,
        batches=stage.batches,
        config=stage.train_config,
        report=lambda record: (
            records.append(record) or print(f"{name} {record['step']} {record['ce']:.4f}", flush=True)
        ),
    )
    test = stage.final(stage.model)
    row = {
        "row": name,
        "seed": seed,
        "steps": flags.steps,
        "changes": ROWS[name],
        "train_seconds": time.process_time() - started,
    }
    row |= {
        "ce": [record["ce"] for record in records],
        "nats_by_scale": [test[f"test_ce_scale_{k}"] for k in range(1, len(stage.model.scales) + 1)],
    }
    row["nats"] = sum(t * ce for t, ce in zip(stage.model.scales, row["nats_by_scale"], strict=True))
    if "test_ce_image" in test:
        row["nats_from_pictures"] = test["test_ce_image"] * sum(stage.model.scales)
    row["nats_unconditional"] = test["test_ce_unconditional"] * sum(stage.model.scales)
    return row | judged(stage, flags)


def judged(stage: CARStage, flags: argparse.Namespace) -> dict[str, Any]:
    """Draw samples from the trained model and return their figures."""
    started, judge = time.process_time(), JUDGES.get(flags.tokenizer) or Judge(stage, flags.data, flags.tokenizer)
    JUDGES[flags.tokenizer] = judge
    prompts = choose_prompts(judge.train, judge.held, flags.samples, 0)
    texts, families = [prompt["text"] for prompt in prompts], [prompt["family"] for prompt in prompts]
    assert families == [caption_family(text) for text in short_prompts(texts)]
    row: dict[str, Any] = {"ceiling": judge.ceiling, "family": {}, "short": {}, "samples": len(texts)}
    stage.model.eval()
    for name, settings in GUIDANCE.items():
        for kind, asked in (("family", texts), ("short", short_prompts(texts)))[: 1 + (name in SHORT)]:
            codes_BS = stage.model.sample_codes(asked, [None] * len(asked), range(len(asked)), settings, batch=32)
            row[kind][name] = judge.family(codes_BS, families)
            if kind == "family" and name == "ramp 2":
                row["chamfer"] = judge.chamfer(codes_BS)
            if kind == "family" and name == "constant 2":
                row["attributes"] = judge.attributes(codes_BS, prompts)
    if stage.model.image is not None:
        count = min(flags.samples, len(judge.held["id"]))
        shown = [prepare_image(views[0], stage.model.config.image_size) for views in judge.held["views"][:count]]
        codes_BS = stage.model.sample_codes([None] * count, shown, range(count), GUIDANCE["constant 2"], batch=32)
        row["pictures"] = judge.family(codes_BS, list(judge.held["category"][:count]))
        asked = zip(judge.held["caption"][:NUM_MEASURED], judge.held["category"][:NUM_MEASURED], strict=True)
        row["pictures"] |= judge.attributes(
            codes_BS, [{"family": family, "unseen": True, "attributes": attributes_of(text)} for text, family in asked]
        )
    return row | {"judge_seconds": time.process_time() - started}


def table(folder: Path) -> str:
    """Markdown table of all finished rows."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*-s*.json")]
    rows.sort(key=lambda row: (list(ROWS).index(row["row"]), row["steps"], row["seed"]))
    names = [
        "row",
        "steps",
        "seed",
        "CPU s",
        "nats",
        "by scale",
        *(f"family, {name}" for name in GUIDANCE),
        *(f"short, {name}" for name in SHORT),
        "attributes seen, unseen",
        "pictures: family, attributes, nats",
        "Chamfer",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows])


def cells(row: dict[str, Any]) -> list[str]:
    found = [*row["family"].values(), *row["short"].values()]
    shares = [f"{one['share']:.3f} ({one['interval'][0]:.2f} to {one['interval'][1]:.2f})" for one in found]
    by_scale = " ".join(f"{ce:.2f}" for ce in row["nats_by_scale"])
    attributes = ", ".join(f"{share:.3f}" for share in row.get("attributes", {}).values())
    pictures = (
        f"{row['pictures']['share']:.3f}, {row['pictures']['unseen']:.3f}, {row['nats_from_pictures']:.0f}"
        if "pictures" in row
        else ""
    )
    return [
        row["row"],
        str(row["steps"]),
        str(row["seed"]),
        f"{row['train_seconds']:.0f}",
        f"{row['nats']:.0f}",
        by_scale,
        *shares,
        attributes,
        pictures,
        "" if row["chamfer"] is None else f"{row['chamfer']:.4f}",
    ]


def main() -> None:
    parser = row_parser(__doc__, "out/generator")
    parser.add_argument("--tokenizer", help="run or export of a tokenizer; one folder of results for each")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--samples", type=int, default=128)
    flags = parser.parse_args()
    for name, seed, path in rows_asked(flags, ROWS):
        if not path.exists():
            encode_dataset(flags.data, flags.tokenizer, use_ray=False)  # finished rows are skipped
            path.write_text(json.dumps(run_row(name, seed, flags), indent=1), encoding="utf-8")
            print(
                table(flags.output).splitlines()[0],
                f"| {' | '.join(cells(json.loads(path.read_text(encoding='utf-8'))))} |",
                sep="\n",
                flush=True,
            )
    print(table(flags.output))


if __name__ == "__main__":
    main()
