"""Distance between a mesh and its variations, by the number of scales kept: `python benchmarks/variation.py --help`.

Each procedural shape of the test split is converted, encoded, and varied with K = 0 ... S of its scales kept, with its
caption and without a prompt. The distance is the Chamfer distance between samples of both surfaces, in the model's box
(longest side 1.9). Intervals are 95 % percentile bootstraps over shapes; the fall from K - 1 to K is paired.
`--sheet FILE` draws the first shape of each family instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine
from g3pt.data.records import id_hash, split_of
from g3pt.geometry.convert import convert_mesh
from g3pt.geometry.render import contact_sheet
from g3pt.geometry.surface import sample_surface
from g3pt.metrics.pairwise import bootstrap_interval, chamfer
from g3pt.models.car import G3PT
from g3pt.models.decoding import decode_meshes
from g3pt.models.encoding import encode, source_conversion
from g3pt.shapes import Shape, make_shape, parse_id, shape_ids

NUM_POINTS = 4096
Mesh = tuple[np.ndarray, np.ndarray]


def test_shapes(per_family: int) -> list[Shape]:
    """The first shapes of each family in the test split, by hash of the id."""
    found: dict[str, list[str]] = {}
    for name in sorted((name for name in shape_ids() if split_of(name) == "test"), key=id_hash):
        family = found.setdefault(parse_id(name)[0], [])
        if len(family) < per_family:
            family.append(name)
    return [make_shape(name) for family in sorted(found) for name in found[family]]


def encoded(model: G3PT, shapes: list[Shape]) -> tuple[torch.Tensor, list[np.ndarray], list[Mesh]]:
    """(codes (N, S), samples of the surfaces (P, 3), solids) of the shapes."""
    rows = [convert_mesh(shape.vertices, shape.faces, source_conversion(model.tokenizer.config)) for shape in shapes]
    samples = [row["eval_surface"][:NUM_POINTS, :3].astype(np.float64) for row in rows]
    return torch.from_numpy(encode(model.tokenizer, rows)), samples, [row["solid"] for row in rows]


def variations(model: G3PT, codes_NS: torch.Tensor, texts: list[str | None], resolution: int) -> list[list[Mesh]]:
    """The meshes of each shape, for K = 0 ... S."""
    found: list[list[Mesh]] = [[] for _ in texts]
    for keep in range(len(model.scales) + 1):
        known = [model.kept_codes(codes_S, keep) for codes_S in codes_NS]
        drawn_NS = model.sample_codes(texts, [None] * len(texts), [0] * len(texts), known=known)
        for number, codes_S in enumerate(drawn_NS):
            (mesh,) = decode_meshes(model.tokenizer, model.tokenizer.decode_latents(codes_S[None]), resolution)
            found[number].append((mesh.vertices, mesh.faces))
    return found


def distances(meshes: list[list[Mesh]], samples: list[np.ndarray]) -> np.ndarray:
    """Chamfer distances (N, S + 1); nan where a variation has no surface."""
    found = np.full((len(meshes), len(meshes[0])), np.nan)
    for number, (row, points) in enumerate(zip(meshes, samples, strict=True)):
        for keep, (vertices, faces) in enumerate(row):
            if len(faces):
                drawn = sample_surface(vertices, faces, NUM_POINTS, np.random.default_rng(number))[:, :3]
                found[number, keep] = chamfer(drawn, points)
    return found


def table_of(found: np.ndarray, scales: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row per K: codes kept, mean distance and its fall from K - 1, each with an interval, and empty variations."""
    rows = []
    for keep in range(found.shape[1]):
        values = found[:, keep][~np.isnan(found[:, keep])]
        row: dict[str, Any] = {
            "keep_scales": keep,
            "codes_kept": sum(scales[:keep]),
            "chamfer": float(values.mean()),
            "chamfer_interval": bootstrap_interval(values),
            "empty": int(np.isnan(found[:, keep]).sum()),
        }
        if keep:
            fall = found[:, keep - 1] - found[:, keep]
            fall = fall[~np.isnan(fall)]
            row |= {"fall": float(fall.mean()), "fall_interval": bootstrap_interval(fall)}
            row["nearer"] = float((fall > 0).mean())
        rows.append(row)
    return rows


def measure(model: G3PT, shapes: list[Shape], resolution: int) -> dict[str, Any]:
    """The tables with and without captions."""
    codes_NS, samples, _ = encoded(model, shapes)
    prompts: dict[str, list[str | None]] = {
        "caption": [shape.caption for shape in shapes],
        "no prompt": [None] * len(shapes),
    }
    found = {}
    for name, texts in prompts.items():
        rows = table_of(distances(variations(model, codes_NS, texts, resolution), samples), model.scales)
        found[name] = rows
        for row in rows:
            low, high = row["chamfer_interval"]
            fall = "fall {:.4f} [{:.4f}, {:.4f}], nearer {:.0%}".format(
                row["fall"], *row["fall_interval"], row["nearer"]
            ) if "fall" in row else ""  # fmt: skip
            print(
                f"{name:<10} K={row['keep_scales']} codes={row['codes_kept']:>3} chamfer {row['chamfer']:.4f} "
                f"[{low:.4f}, {high:.4f}] empty {row['empty']} {fall}",
                flush=True,
            )
    return found


def draw(model: G3PT, shapes: list[Shape], file: Path, resolution: int) -> None:
    """A picture with a row per shape: the source, then its variations for K = 0 ... S."""
    codes_NS, _, solids = encoded(model, shapes)
    meshes = variations(model, codes_NS, [shape.caption for shape in shapes], resolution)
    last = len(model.scales)
    titles = [f"keep {keep}" for keep in range(last)] + [f"keep {last}: reconstruction"]
    titles[0] = "keep 0: text alone"
    items = []
    for shape, solid, row in zip(shapes, solids, meshes, strict=True):
        items.append((*solid, shape.caption))
        items += [(*mesh, title) for mesh, title in zip(row, titles, strict=True)]
    contact_sheet(items, file, columns=last + 2, size=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/g3pt-nano-car", help="run or export of a generator")
    parser.add_argument("--per-family", type=int, default=2, help="shapes of each of the 16 families")
    parser.add_argument("--resolution", type=int, default=64, help="cells per side of the surface's grid")
    parser.add_argument("--sheet", type=Path, help="draw a picture instead")
    parser.add_argument("--families", default="chair,car,mug,lamp,plane", help="families on the picture")
    parser.add_argument("--json", type=Path, help="also write the tables with the hardware here")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    model, shapes = G3PT.from_pretrained(flags.model), test_shapes(flags.per_family)
    if flags.sheet:
        chosen = {shape.family: shape for shape in reversed(shapes)}
        draw(model, [chosen[name] for name in flags.families.split(",")], flags.sheet, flags.resolution)
        return
    found = measure(model, shapes, flags.resolution)
    if flags.json:
        flags.json.write_text(
            json.dumps({"shapes": len(shapes), "tables": found} | machine.about("torch"), indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
