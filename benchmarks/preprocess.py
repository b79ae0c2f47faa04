"""Cost of preprocessing: CPU seconds and peak memory per stage, and those of other libraries on the same meshes.

    python benchmarks/preprocess.py --meshes FOLDER --output preprocess.json
        (or G3PT_MESHES=FOLDER; without: made meshes)
    python benchmarks/preprocess.py --meshes FOLDER --resolutions 512 --only g3pt     (a large grid)
    python benchmarks/preprocess.py --resolutions 256 --only g3pt
        (made meshes: the last has 1,310,720 faces)

Runs on one core. Seconds are CPU time, the least of --repeat runs. Each mesh and method has its own process; peak
memory is what that process used beyond its imports. A method that exceeds --limit-s CPU seconds is killed and reported.
The --sample objects with the smallest sha256(id), not chosen by face count, give the core-hours of a million objects.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402

from benchmarks import machine, preprocess_meshes, preprocess_tables  # noqa: E402
from benchmarks.preprocess_rivals import METHODS, SLOW  # noqa: E402
from benchmarks.preprocess_stages import traced  # noqa: E402

PACKAGES = ("numpy", "numba", "scipy", "scikit-image", "pyarrow", "mesh2sdf", "point-cloud-utils", "trimesh")
SLOW_FROM = 256  # from this resolution on, slow methods run on --slow-meshes meshes only
NUM_POINTS = 32768  # points labelled in the box, and as many near the surface


# -------------------------------------------------------------------------------------------------------- in the child


def convert(folder: Path, paths: list[str], resolution: int, views: int, repeat: int) -> list[dict[str, Any]]:
    """Cost of converting each file, by stage: the cheapest of `repeat` runs."""
    from g3pt.data import datasets
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.shards import convert_object, warm_up, warm_up_with_views
    from pipelines.preprocess.sources import SourceObject

    (warm_up_with_views if views else warm_up)()
    config = asdict(
        PreprocessConfig(source="dir", output="unused", input=str(folder), resolution=resolution, views=views)
    )
    rows = []
    for path in paths:
        item = asdict(SourceObject(id=path, source="dir", content_sha256="", size=0, path=path))
        runs = []
        for _ in range(repeat):
            with traced() as stages, machine.cost() as total:
                table = convert_object(item, config)
                data = datasets.parquet_bytes(table)
            runs.append(
                {
                    "seconds": total.seconds,
                    "bytes": len(data),
                    "stages": {name: asdict(found) for name, found in stages.items()},
                }
            )
        best = min(runs, key=lambda run: run["seconds"])
        best["peak_mb"] = max(found["peak_mb"] for found in best["stages"].values())
        rows.append(
            {
                "path": path,
                "faces": table["num_faces"][0].as_py(),
                "solid_faces": table["solid_faces"][0].as_py(),
                **best,
            }
        )
    return rows


def label(folder: Path, path: str, resolution: int, method: str, repeat: int, output: Path) -> dict[str, Any]:
    """Cost of one method's solid and labels for one file; writes the labels to `output`."""
    from g3pt.geometry.load import load_mesh

    mesh = load_mesh(folder / path, folder)
    vertices, faces, points, far = _common(mesh.vertices, mesh.faces, resolution)
    function = METHODS[method]
    function(*_common(*_tetrahedron(), 32)[:2], 32, points[:64])  # a first call imports and compiles
    seconds, peaks = [], []
    for _ in range(repeat):
        with machine.cost() as found:
            labels = function(vertices, faces, resolution, points)
        seconds, peaks = [*seconds, found.seconds], [*peaks, found.peak_mb]
    np.savez(output, labels=labels, far=far)
    return {"path": path, "faces": len(faces), "seconds": min(seconds), "peak_mb": max(peaks)}


def _tetrahedron() -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    return corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def _common(
    vertices: np.ndarray, faces: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mesh scaled into [-0.95, 0.95]^3, the points, and a mask of points further than two voxels from it."""
    from scipy.spatial import cKDTree

    from g3pt.geometry.surface import sample_surface

    used = vertices[np.unique(faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    vertices = (vertices - (low + high) / 2) * (1.9 / (high - low).max())
    rng = np.random.default_rng(0)
    surface = sample_surface(vertices, faces, 200_000, rng)[:, :3]
    near = np.clip(surface[:NUM_POINTS] + rng.normal(0.0, 0.02, (NUM_POINTS, 3)), -1.0, 1.0)
    points = np.concatenate([near, rng.uniform(-1.0, 1.0, (NUM_POINTS, 3))])
    far = cKDTree(surface).query(points, distance_upper_bound=4.0 / resolution)[0] > 4.0 / resolution
    return vertices, faces, points, far


# ------------------------------------------------------------------------------------------------------- in the parent


def child(flags: argparse.Namespace, **case: Any) -> Any:
    """Figures of one case, run in its own process; {"error": ...} if it failed or exceeded its CPU seconds."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--case", json.dumps(case | {"limit_s": flags.limit_s})]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | one_thread, encoding="utf-8", errors="replace"
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if case["kind"] == "convert":  # ours must not fail
        raise RuntimeError(f"{case}: exit {done.returncode}: {done.stderr[-2000:]}")
    words = done.stderr.strip().splitlines()
    how = (
        f"signal {-done.returncode} (limit: {flags.limit_s:.0f} CPU s)"
        if done.returncode < 0
        else f"exit {done.returncode}"
    )
    return {"error": f"{how}: {words[-1][:200] if words else ''}"}


def run_case(case: dict[str, Any]) -> None:
    """Run in the child process: print one JSON line."""
    limit = int(case.pop("limit_s"))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    kind, folder = case.pop("kind"), Path(case.pop("folder"))
    found = convert(folder, **case) if kind == "convert" else label(folder, **case | {"output": Path(case["output"])})
    print(json.dumps(found))


def compare(flags: argparse.Namespace, folder: Path, paths: list[str], resolution: int) -> list[dict[str, Any]]:
    """Run all methods on the same meshes, each with its agreement with the first one (ours)."""
    few = np.linspace(0, len(paths) - 1, min(flags.slow_meshes, len(paths))).round().astype(int)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, path in enumerate(paths):
            first = None
            for method in flags.only:
                slow = method in SLOW and resolution >= SLOW_FROM
                if slow and number not in few:
                    continue
                output = f"{scratch}/{number}-{method}.npz"
                case = {
                    "path": path,
                    "resolution": resolution,
                    "method": method,
                    "repeat": 1 if slow else flags.repeat,
                    "output": output,
                }
                row = child(flags, kind="label", folder=str(folder), **case) | {
                    "path": path,
                    "method": method,
                    "resolution": resolution,
                }
                if "error" not in row:
                    found = np.load(output)
                    first = found if first is None else first
                    row |= agreement(found["labels"], first["labels"], first["far"])
                rows.append(row)
                print(f"  {row}", file=sys.stderr, flush=True)
    return rows


def agreement(labels: np.ndarray, first: np.ndarray, far: np.ndarray) -> dict[str, float]:
    """IoU of two sets of labels, and the share of equal labels further than two voxels from the mesh."""
    union = (labels | first).sum()
    return {
        "iou": float((labels & first).sum() / union) if union else 1.0,
        "equal_far": float((labels == first)[far].mean()) if far.any() else 1.0,
    }


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Run all cases in turn."""
    folder = Path(flags.meshes).resolve() if flags.meshes else preprocess_meshes.made()
    chosen = preprocess_meshes.chosen(folder, flags.count)
    paths = [path for path, _ in chosen]
    report: dict[str, Any] = {
        "meshes": str(flags.meshes or "made"),
        "machine": machine.about(*PACKAGES),
        "stages": [],
        "methods": [],
        "sample": [],
    }
    common = {"kind": "convert", "folder": str(folder), "repeat": flags.repeat}
    for resolution in flags.resolutions:
        report["stages"] += [
            found | {"resolution": resolution}
            for found in child(flags, paths=paths, resolution=resolution, views=flags.views, **common)
        ]
        report["methods"] += compare(flags, folder, paths, resolution)
        if flags.sample:
            smallest = preprocess_meshes.smallest(folder, flags.sample)
            case = common | {"paths": smallest, "resolution": resolution, "repeat": 1, "views": flags.views}
            report["sample"] += [found | {"resolution": resolution} for found in child(flags, **case)]
    report["machine"]["load_average_after"] = os.getloadavg()
    return report


def main() -> None:
    """Measure all cases; print Markdown tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--meshes", type=Path, default=os.environ.get("G3PT_MESHES"), help="folder of meshes; default made ones"
    )
    parser.add_argument("--count", type=int, default=12, help="meshes over the range of face counts")
    parser.add_argument(
        "--resolutions", type=lambda text: [int(part) for part in text.split(",")], default=[64, 128, 256]
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(METHODS),
        help=f"methods of {','.join(METHODS)}, g3pt first",
    )
    parser.add_argument("--slow-meshes", type=int, default=2, help=f"meshes for mesh2sdf from {SLOW_FROM} cells on")
    parser.add_argument("--views", type=int, default=4, help="views of an object; 0 for none")
    parser.add_argument(
        "--sample", type=int, default=0, help="objects whose mean gives the core-hours of a million; default none"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the cheapest counts")
    parser.add_argument("--limit-s", type=float, default=900.0, help="CPU seconds of one process")
    parser.add_argument("--output", type=Path, default=Path("preprocess.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        run_case(json.loads(flags.case))
        return
    unknown = sorted(set(flags.only) - set(METHODS))
    if unknown:
        parser.error(f"--only {','.join(unknown)}: methods are {', '.join(METHODS)}")
    report = measure(flags)
    print(preprocess_tables.markdown(report))
    flags.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
