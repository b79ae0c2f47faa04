"""The diagram of the whole system in README.md: `python docs/make/overview.py` writes docs/images/overview.svg.

How: every shape is a line of SVG text; positions are computed from a few numbers below. Only DejaVu, Arial or any
sans-serif is needed.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT = 1000, 610
INK, SOFT, LINE = "#1d2733", "#5b6b7b", "#93a1af"
TOKENIZER, GENERATOR, STAGE, TRACKING = "#e8f1fb", "#fdf0e1", "#eef3ec", "#f1eef8"
CODES = ("#2f6db3", "#5a9bd8", "#9cc4ea", "#e0a458", "#c96f4a", "#7d5a9e", "#4f9d8f", "#b7c95c")
SCALES = (1, 2, 4, 8)  # cells along a scale's drawn grid: 1, 4, 16, 64 tokens
CENTRES = (95, 240, 385, 560, 745, 905)  # of the six pictures in the tokenizer's row
MIDDLE = 150  # height of their centres
FILE = Path(__file__).resolve().parents[1] / "images" / "overview.svg"


def text(
    x: float, y: float, words: str, size: int = 15, colour: str = INK, anchor: str = "middle", weight: int = 400
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{words}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="12" fill="{fill}" stroke="{stroke}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 5"' if dashed else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{SOFT}" stroke-width="2"{dash} '
        f'marker-end="url(#head)"/>'
    )


def icosahedron(x: float, y: float, radius: float, fill: bool) -> Iterator[str]:
    """A small faceted solid: twelve corners on two rings and two poles, seen from the side."""
    rings = [
        [(math.cos(2 * math.pi * (k + shift) / 5), height) for k in range(5)]
        for shift, height in ((0.1, -0.42), (0.6, 0.42))
    ]
    depth = [[math.sin(2 * math.pi * (k + shift) / 5) for k in range(5)] for shift in (0.1, 0.6)]
    corners = [(x + radius * a * 0.92, y + radius * b) for ring in rings for a, b in ring] + [
        (x, y - radius),
        (x, y + radius),
    ]
    depths = [*depth[0], *depth[1], 0.0, 0.0]
    faces = [(k, (k + 1) % 5, 10) for k in range(5)] + [(5 + k, 5 + (k + 1) % 5, 11) for k in range(5)]
    faces += [(k, (k + 1) % 5, 5 + k) for k in range(5)] + [(5 + k, 5 + (k + 1) % 5, (k + 1) % 5) for k in range(5)]
    for face in faces:
        if sum(depths[k] for k in face) > 0:  # the far side is hidden
            shade = 222 - int(26 * sum(corners[k][0] - x for k in face) / radius)
            points = " ".join(f"{corners[k][0]:.1f},{corners[k][1]:.1f}" for k in face)
            colour = f"rgb({shade - 60},{shade - 30},{shade})" if fill else "white"
            yield (
                f'<polygon points="{points}" fill="{colour}" stroke="{INK}" stroke-width="1.2" '
                f'stroke-linejoin="round"/>'
            )


def points(x: float, y: float, radius: float) -> Iterator[str]:
    draw = random.Random(7)
    for _ in range(150):
        turn, height = draw.uniform(0, 2 * math.pi), draw.uniform(-1, 1)
        across = math.sqrt(1 - height * height) * math.cos(turn)
        yield f'<circle cx="{x + radius * across:.1f}" cy="{y + radius * height:.1f}" r="1.7" fill="{CODES[0]}"/>'


def latents(x: float, y: float) -> Iterator[str]:
    draw = random.Random(3)
    for row in range(8):
        for column in range(6):
            yield (
                f'<rect x="{x - 36 + 12 * column}" y="{y - 44 + 11 * row}" width="10.5" height="8" '
                f'fill="{CODES[0]}" opacity="{draw.uniform(0.15, 0.95):.2f}"/>'
            )


def scales(x: float, y: float, side: float = 44) -> Iterator[str]:
    """Four grids, coarse to fine; a cell's colour is its code."""
    draw = random.Random(11)
    for number, cells in enumerate(SCALES):
        left, top = x - 106 + 54 * number, y - side / 2
        size = side / cells
        for k in range(cells * cells):
            colour = draw.choice(CODES)
            yield (
                f'<rect x="{left + size * (k % cells):.2f}" y="{top + size * (k // cells):.2f}" width="{size:.2f}" '
                f'height="{size:.2f}" fill="{colour}" stroke="white" stroke-width="0.8"/>'
            )
        yield text(left + side / 2, y + side / 2 + 18, str(cells * cells), 13, SOFT)


def field(x: float, y: float, radius: float) -> Iterator[str]:
    yield f'<circle cx="{x}" cy="{y}" r="{radius + 9}" fill="url(#field)"/>'
    yield (
        f'<circle cx="{x}" cy="{y}" r="{radius - 8}" fill="none" stroke="{INK}" stroke-width="1.6" '
        f'stroke-dasharray="4 3"/>'
    )


def tokenizer() -> Iterator[str]:
    mesh, cloud, latent, code, occupancy, result = CENTRES
    yield box(20, 52, 960, 206, TOKENIZER)
    yield text(36, 78, "CVQ, the tokenizer", 16, anchor="start", weight=700)
    yield text(232, 78, "turns a surface into codes of several scales, and codes into a surface", 14, SOFT, "start")
    yield from icosahedron(mesh, MIDDLE, 44, fill=False)
    yield from points(cloud, MIDDLE, 44)
    yield from latents(latent, MIDDLE)
    yield from scales(code, MIDDLE - 8)
    yield from field(occupancy, MIDDLE, 44)
    yield from icosahedron(result, MIDDLE, 44, fill=True)
    for x, name, more in (
        (mesh, "mesh", "made watertight"), (cloud, "points", "on its surface"), (latent, "latents", "64 vectors"),
        (code, "codes by scale", "each scale adds detail"), (occupancy, "field", "inside or outside"),
        (result, "mesh", "marching cubes"),
    ):  # fmt: skip
        yield text(x, 222, name, 15, weight=700) + text(x, 241, more, 13, SOFT)
    edges = [
        (mesh + 50, cloud - 52),
        (cloud + 52, latent - 46),
        (latent + 42, code - 112),
        (code + 112, occupancy - 60),
        (occupancy + 58, result - 50),
    ]
    yield from (arrow(start, MIDDLE - 8, end, MIDDLE - 8) for start, end in edges)


def generator() -> Iterator[str]:
    yield box(20, 280, 960, 128, GENERATOR)
    yield text(36, 306, "CAR, the generator", 16, anchor="start", weight=700)
    yield text(232, 306, "predicts all codes of the next scale at once", 14, SOFT, "start")
    yield box(40, 326, 190, 62, "white", LINE)
    yield text(135, 352, "“a low round table”", 15) + text(135, 374, "text, a picture, or both", 13, SOFT)
    yield box(300, 326, 150, 62, "white", LINE)
    yield text(375, 352, "transformer", 15) + text(375, 374, "one step per scale", 13, SOFT)
    yield arrow(232, 357, 294, 357) + arrow(452, 357, 494, 357)
    for number, (left, tokens) in enumerate(zip((504, 604, 704, 804), (1, 4, 16, 64), strict=True)):
        yield box(left, 338, 74, 38, "white", LINE)
        yield text(left + 37, 362, f"{tokens} code" + ("s" if tokens > 1 else ""), 13)
        if number:
            yield arrow(left - 24, 357, left - 4, 357)
    yield arrow(691, 334, 691, 264)
    yield text(703, 274, "sampled codes are decoded by CVQ", 13, SOFT, "start")


def system() -> Iterator[str]:
    yield text(36, 442, "Ray", 16, anchor="start", weight=700)
    yield text(
        75,
        442,
        "runs each stage on a laptop, one GPU or a cluster; every stage resumes where it stopped",
        14,
        SOFT,
        "start",
    )
    stages = (
        ("preprocess", "meshes to Parquet shards", "Ray Data"), ("train", "CVQ, then CAR", "Ray Train"),
        ("scaling sweep", "sizes, and a power law", "Ray Tune"), ("generate", "prompts to .glb files", "Ray actors"),
        ("evaluate", "metrics with intervals", "Ray actors"),
    )  # fmt: skip
    width = 176
    for number, (name, what, library) in enumerate(stages):
        left = 20 + (width + 20) * number
        yield box(left, 456, width, 76, STAGE)
        yield text(left + width / 2, 481, name, 15, weight=700)
        yield text(left + width / 2, 501, what, 13) + text(left + width / 2, 520, library, 13, SOFT)
        if number:
            yield arrow(left - 17, 494, left - 3, 494)
    yield box(20, 548, 960, 44, TRACKING)
    yield text(36, 576, "MLflow", 16, anchor="start", weight=700)
    yield text(
        105,
        576,
        "and report.html show every dataset, run, study and evaluation: curves, meshes, numbers with their protocol",
        14,
        SOFT,
        "start",
    )


def svg() -> str:
    """The whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="DejaVu Sans, Verdana, Arial, sans-serif" role="img" aria-label="Overview of g3pt">'
    )
    defs = (
        f'<defs><marker id="head" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto"><path d="M0,0 L8,4 '
        f'L0,8 z" fill="{SOFT}"/></marker><radialGradient id="field"><stop offset="0" stop-color="{CODES[0]}"/><stop '
        f'offset="0.55" stop-color="{CODES[0]}" stop-opacity="0.8"/><stop offset="1" stop-color="{CODES[0]}" '
        f'stop-opacity="0"/></radialGradient></defs>'
    )
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="white"/>'
    title = text(36, 36, "From a mesh to codes, from a prompt to a mesh", 18, anchor="start", weight=700)
    return "\n".join([head, defs, background, title, *tokenizer(), *generator(), *system(), "</svg>"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
    print(FILE)
