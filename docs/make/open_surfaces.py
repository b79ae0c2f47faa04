"""The picture of filled open surfaces: `python docs/make/open_surfaces.py FOLDER...` writes
docs/images/open_surfaces.png and its credits.

Each object is shown from above and from below as its file has it, and as a section through both solids: dark is the
wall that `--open-surfaces wall` leaves, orange is what `--open-surfaces fill` adds. FOLDER: folders of meshes, each
with a manifest.csv.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from g3pt.geometry.labels import inside
from g3pt.geometry.load import load_mesh
from g3pt.geometry.render import picture
from g3pt.geometry.watertight import Solid, watertight
from pipelines.preprocess.credits import write_credits

RESOLUTION, TILE, HEAD, COLUMNS = 128, 120, 16, 4
WALL, ADDED = (40, 44, 66), (228, 120, 60)
FILE = Path(__file__).resolve().parents[1] / "images" / "open_surfaces.png"
EXAMPLES = {  # id -> (title, axis across the section, its place along that axis as a share of the box)
    "kaykit_dungeon2__pillar": ("a pillar without lids", 2, 0.5),
    "kaykit_dungeon__wall": ("a hollow wall", 0, 0.5),
    "quaternius_real_time_strategy_pack__Mountain_Group_1": ("mountains without a floor", 2, 0.5),
    "kenney_minigolf__structure-gate": ("the gate stays open", 2, 0.5),
    "kaykit_dungeon__stairs": ("stairs", 0, 0.5),
    "kaykit_dungeon__wall_gated": ("bars stay bars", 2, 0.5),
    "quaternius_buildings_pack_3__2Story_Balcony_Mat": ("a house without a floor", 2, 0.5),
    "kaykit_dungeon2__coin_stack_small": ("coins", 2, 0.5),
    "kaykit_restaurant__pot_B": ("a pot of two walls stays", 2, 0.5),
    "kaykit_restaurant__crate_carrots": ("so does a crate", 2, 0.5),
    "kenney_nature_kit__plant_bushTriangle": ("leaves stay sheets", 2, 0.5),
    "kenney_retro_urban__balcony-ladder-top": ("a balcony stays walls", 2, 0.5),
    "kenney_space_kit__pipeRamp": ("FAILURE: a pipe is plugged", 0, 0.5),
    "kenney_nature_kit__tent_smallClosed": ("FAILURE: a tent stays hollow", 2, 0.5),
    "kenney_nature_kit__flower_yellowA": ("FAILURE: a blossom is filled", 2, 0.5),
    "odedstein__mountain": ("FAILURE: flat and ragged, stays a sheet", 2, 0.5),
}


def rows_of(folders: list[Path]) -> dict[str, dict[str, str]]:
    """Id -> row of a manifest, with its folder."""
    found = {}
    for folder in folders:
        with open(folder / "manifest.csv", newline="", encoding="utf-8-sig") as file:
            found |= {row["id"]: row | {"folder": str(folder)} for row in csv.DictReader(file)}
    return found


def section(wall: Solid, filled: Solid, axis: int, share: float) -> Image.Image:
    """The solids cut across an axis, TILE x TILE, y up (z to the right where x is cut away)."""
    across, up = ((2, 1), None, (0, 1))[axis] or (0, 2)
    low, high = filled.vertices.min(axis=0), filled.vertices.max(axis=0)
    places = (np.arange(TILE) + 0.5) / TILE * 2 - 1
    points = np.zeros((TILE, TILE, 3))
    points[..., axis] = low[axis] + share * (high[axis] - low[axis])
    points[..., across], points[..., up] = places[None, :], places[::-1, None]
    points = points.reshape(-1, 3)
    pixels = np.full((TILE * TILE, 3), 255, dtype=np.uint8)
    pixels[inside(filled.vertices, filled.faces, points)] = ADDED
    moved = (points - filled.offset) / filled.scale * wall.scale + wall.offset
    pixels[inside(wall.vertices, wall.faces, moved)] = WALL
    return Image.fromarray(pixels.reshape(TILE, TILE, 3))


def example(row: dict[str, str], title: str, axis: int, share: float) -> Image.Image:
    """The tile of one object: title, two views, a section."""
    mesh = load_mesh(Path(row["folder"]) / row["path"], Path(row["folder"]))
    wall, filled = (watertight(mesh.vertices, mesh.faces, RESOLUTION, open_surfaces=how) for how in ("wall", "fill"))
    placed = np.asarray(mesh.vertices) * filled.scale + filled.offset
    tile = Image.new("RGB", (3 * TILE, TILE + HEAD), "white")
    for k, elevation in enumerate((20, -35)):
        view = picture(placed, mesh.faces, TILE, 35, elevation)
        tile.paste(view, (k * TILE, HEAD), view)
    tile.paste(section(wall, filled, axis, share), (2 * TILE, HEAD))
    ImageDraw.Draw(tile).text((4, 2), f"{title} (+{filled.filling.share:.0%} of the solid)", fill="black")
    return tile


def main(folders: list[Path]) -> None:
    """Draw all examples."""
    rows = rows_of(folders)
    sheet = Image.new("RGB", (COLUMNS * 3 * TILE, -(-len(EXAMPLES) // COLUMNS) * (TILE + HEAD)), "white")
    for k, (name, what) in enumerate(EXAMPLES.items()):
        sheet.paste(example(rows[name], *what), (k % COLUMNS * 3 * TILE, k // COLUMNS * (TILE + HEAD)))
    sheet.quantize(64).save(FILE, optimize=True)
    write_credits(FILE, [rows[name] for name in EXAMPLES], shows="them and sections through their solids")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
