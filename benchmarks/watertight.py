"""Seconds per mesh of the watertight conversion: our narrow band against mesh2sdf on the same meshes.

    python benchmarks/watertight.py [--input FOLDER] [--limit 4] [--resolutions 64,128] [--output watertight.json]

Without --input three made shapes are used. mesh2sdf runs without its fix option (which sweeps the grid a second
time and keeps one component); the fill and marching cubes after it are ours and are counted for both.
Each method runs once per mesh on one core after a warm-up; CPU seconds of this process are reported.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from g3pt.geometry.load import SUFFIXES, load_mesh
from g3pt.geometry.watertight import METHODS, watertight

Mesh = tuple[str, np.ndarray, np.ndarray]


def made_meshes() -> list[Mesh]:
    import trimesh

    shapes = {"box": trimesh.creation.box((1, 1, 1)), "torus": trimesh.creation.torus(1.0, 0.3), "ball": trimesh.creation.icosphere(6)}
    return [(name, np.asarray(shape.vertices), np.asarray(shape.faces)) for name, shape in shapes.items()]


def real_meshes(folder: Path, limit: int) -> list[Mesh]:
    """`limit` meshes spread evenly over the folder's sorted files."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)]
    loaded = [(path.relative_to(folder).as_posix(), load_mesh(path, folder)) for path in chosen]
    return [(name, mesh.vertices, mesh.faces) for name, mesh in loaded]


def hardware() -> dict:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()[0]}


def measure(mesh: Mesh, resolution: int, method: str) -> dict:
    name, vertices, faces = mesh
    start = time.process_time()
    solid = watertight(vertices, faces, resolution, method)
    seconds = time.process_time() - start
    return {"mesh": name, "faces": len(faces), "resolution": resolution, "method": method, "seconds": round(seconds, 3), "solid_faces": len(solid.faces)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="folder of meshes")
    parser.add_argument("--limit", type=int, default=4, help="meshes taken from --input")
    parser.add_argument("--resolutions", default="64,128", help="grid cells a side, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--output", type=Path, default=Path("watertight.json"))
    flags = parser.parse_args()
    meshes = real_meshes(flags.input, flags.limit) if flags.input else made_meshes()
    rows = []
    print(f"{'mesh':40} {'faces':>8} {'R':>4} {'method':11} {'CPU s':>8} {'solid faces':>12}")
    for resolution in map(int, flags.resolutions.split(",")):
        for method in flags.methods.split(","):
            watertight(*made_meshes()[0][1:], 32, method)  # compile and load
            for mesh in meshes:
                row = measure(mesh, resolution, method)
                rows.append(row)
                print(f"{row['mesh'][-40:]:40} {row['faces']:8} {resolution:4} {method:11} {row['seconds']:8.3f} {row['solid_faces']:12}", flush=True)
    flags.output.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1))
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
