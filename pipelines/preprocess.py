"""Meshes to a dataset of sharded Parquet: plan what is stale, convert it on Ray Data, write dataset.json last.

How: an object's shard follows from its id, so the plan needs no state: a shard is current when its sidecar carries the hash
of this configuration and of these inputs. One Ray Data task converts one stale shard, each mesh in a killable child
(pipelines.sandbox), and renames the finished parquet into place; starting the command again after any death redoes only
shards that were not finished. `preprocess(config, run_shards=map_here)` does the same without Ray.

Source: DESIGN, contracts 2 and 3, facts 3 and 4.
Ours: status `failed` means that reading or converting went wrong, `rejected` that the file was read and is no object we
      take (no faces, no extent, not finite, too large, refers to files outside its folder).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from g3pt import records
from g3pt.geometry.convert import ConvertConfig
from pipelines import cards
from pipelines.cli import absolute
from pipelines.errors import UsageError, bad_input
from pipelines.failures import doing, on_disk
from pipelines.flags import DryRun, OnRay
from pipelines.notes import working_in
from pipelines.progress import Progress
from pipelines.sandbox import Sandbox
from pipelines.sources import SourceObject, inputs_hash, list_objects
from pipelines.tracked import Outcome, logged

CODE_VERSION = 1  # raise it when a change of geometry or sampling changes a row's bytes: finished shards become stale
OBJECTS_PER_SHARD = 16
MAX_SHARDS = 1024
REJECTED_REASONS = ("no-faces", "zero-extent", "non-finite", "too-large", "external-uri")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(DryRun, OnRay):
    """Turn meshes into a dataset: watertight solids, surface points, occupancy labels and views in sharded Parquet.

    Starting the same command again skips finished shards.
    """

    source: Literal["shapes", "dir", "objaverse"]
    """where objects come from: procedural shapes, or a folder of meshes (objaverse is not built yet)"""
    output: str
    """folder of the dataset"""
    input: str | None = None
    """folder of .glb .gltf .obj .ply .stl .off files for --source dir (a manifest.csv there names the objects); default none"""
    limit: int | None = None
    """take only the objects with the N smallest sha256(id); default all"""
    num_shards: int | None = None
    """shards (files) of the dataset; default as before in this folder, else one per 16 objects, at most 1024"""
    resolution: int = 256
    """grid cells along the box when the solid is made"""
    watertight: Literal["narrowband", "mesh2sdf"] = "narrowband"
    """how the solid is made; mesh2sdf is slow"""
    views: int = 0
    """rendered RGBA views per object"""
    view_size: int = 256
    """width and height of a view in pixels"""
    num_surface: int = 16384
    """surface points per object, and as many again for evaluation"""
    num_sharp: int = 4096
    """points on sharp edges per object"""
    num_queries: int = 32768
    """labelled points near the surface, and as many in the volume; a multiple of 8"""
    timeout_s: float | None = None
    """seconds for one object before it is killed; default 60, with mesh2sdf 900"""
    memory_limit_gb: float = 8.0
    """address space in GiB for one object's child process"""
    seed: int = 0
    """seed of shapes, points and views"""
    retry_failed: bool = False
    """redo the shards that hold timeouts, out-of-memory or download errors"""
    keep_solid: bool = False
    """store each solid mesh as well (column solid, a binary PLY)"""
    num_workers: int | None = None
    """shards converted at a time; default the cluster's CPUs"""

    def __post_init__(self) -> None:
        for name in ("limit", "num_shards", "view_size", "num_workers", "timeout_s", "memory_limit_gb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        self.record, self.convert  # noqa: B018 (both check their own numbers)

    @property
    def record(self) -> records.RecordConfig:
        """The dataset's schema."""
        shared = {name: getattr(self, name) for name in ("num_surface", "num_sharp", "num_queries", "keep_solid")}
        return records.RecordConfig(**shared, num_views=self.views)

    @property
    def convert(self) -> ConvertConfig:
        """What a mesh becomes."""
        names = ("resolution", "watertight", "num_surface", "num_sharp", "num_queries")
        return ConvertConfig(**{name: getattr(self, name) for name in names})

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes a row's bytes: what the config hash covers."""
        found = {
            "schema_version": records.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
            "convert": asdict(self.convert),
            "record": asdict(self.record),
            "view_size": self.view_size if self.views else None,
            "seed": self.seed,
        }
        return json.loads(records.canonical_json(found))

    @property
    def time_limit_s(self) -> float:
        """Seconds for one object."""
        return self.timeout_s or (900.0 if self.watertight == "mesh2sdf" else 60.0)


# --------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One stale shard: everything that a worker needs to write it, as plain data."""

    index: int
    num_shards: int
    objects: list[SourceObject]
    reason: str

    def to_json(self) -> str:
        """Text that `from_json` reads back; a task travels to its worker like this."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardTask:
        """The inverse of `to_json`."""
        found = json.loads(text)
        return cls(**found | {"objects": [SourceObject(**item) for item in found["objects"]]})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do: shards to write, shards that are current, and shards that no object belongs to any more."""

    num_shards: int
    tasks: list[ShardTask]
    current: dict[int, dict[str, Any]]
    extra: list[int]

    @property
    def num_finished(self) -> int:
        """Objects in shards that are current."""
        return sum(sidecar["rows"] for sidecar in self.current.values())

    def lines(self) -> list[str]:
        """The plan for a person."""
        todo = sum(len(task.objects) for task in self.tasks)
        reasons = Counter(task.reason for task in self.tasks)
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        said = (
            [f"{self.num_finished} objects in {len(self.current)} shards are finished and skipped"]
            if self.current
            else []
        )
        if self.tasks:
            said.append(f"{todo} objects in {len(self.tasks)} shards to convert ({why})")
        if self.extra:
            said.append(f"{len(self.extra)} shards to remove: no object belongs to them any more")
        return said or ["nothing to do"]


def make_plan(config: PreprocessConfig, objects: list[SourceObject]) -> Plan:
    """Compare the objects with what lies in the output folder."""
    folder = Path(config.output)
    found = _read_sidecars(folder)
    num_shards = config.num_shards or _num_shards_before(found) or default_num_shards(len(objects))
    shards: dict[int, list[SourceObject]] = {}
    for item in objects:
        shards.setdefault(records.shard_index(item.id, num_shards), []).append(item)
    config_sha256 = records.config_hash(config.settings)
    tasks, current = [], {}
    for index, items in sorted(shards.items()):
        reason = _stale_reason(folder, index, found.get(index), config_sha256, inputs_hash(items), config.retry_failed)
        if reason:
            tasks.append(ShardTask(index=index, num_shards=num_shards, objects=items, reason=reason))
        else:
            current[index] = found[index]
    written = {int(file.stem.split("-")[1]) for file in folder.glob("shard-[0-9]*.*")} if folder.is_dir() else set()
    return Plan(num_shards=num_shards, tasks=tasks, current=current, extra=sorted(written - shards.keys()))


def default_num_shards(num_objects: int) -> int:
    """One shard per 16 objects, at most 1024."""
    return min(MAX_SHARDS, max(1, -(-num_objects // OBJECTS_PER_SHARD)))


def _num_shards_before(sidecars: dict[int, dict[str, Any]]) -> int | None:
    counts = {sidecar.get("num_shards") for sidecar in sidecars.values()}
    return counts.pop() if len(counts) == 1 else None


def _read_sidecars(folder: Path) -> dict[int, dict[str, Any]]:
    """Index -> sidecar of every shard that has a readable one."""
    found = {}
    for file in sorted(folder.glob("shard-[0-9]*.json")) if folder.is_dir() else []:
        try:
            sidecar = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # cut off: its shard counts as not finished
            continue
        if isinstance(sidecar, dict):
            found[int(file.stem.split("-")[1])] = sidecar
    return found


def _stale_reason(
    folder: Path, index: int, sidecar: dict[str, Any] | None, config_sha256: str, inputs_sha256: str, retry_failed: bool
) -> str | None:
    """Why a shard must be written, None when it is current."""
    parquet = folder / f"{records.shard_name(index)}.parquet"
    if sidecar is None:
        return "unfinished" if parquet.exists() else "new"
    if not parquet.is_file() or parquet.stat().st_size != sidecar.get("bytes"):
        return "damaged"
    if sidecar.get("config_sha256") != config_sha256:
        return "stale: settings changed"
    if sidecar.get("inputs_sha256") != inputs_sha256:
        return "stale: inputs changed"
    if retry_failed and any(set(failure.split("/")) & set(records.RETRIED_REASONS) for failure in sidecar["failures"]):
        return "to retry"
    return None


# ------------------------------------------------------------------------------------------------------------ convert


class RowError(Exception):
    """An object that becomes a row without tensors, with its status and short reason."""

    def __init__(self, status: str, reason: str, text: str) -> None:
        super().__init__(text)
        self.status, self.reason = status, reason


def convert_object(item: dict[str, Any], config: dict[str, Any]) -> pa.Table:
    """One object to a table of one row. Runs in the sandbox's child: arguments are what JSON can carry."""
    from g3pt.geometry.load import MeshError

    settings, source = PreprocessConfig(**config), SourceObject(**item)
    try:
        row = _converted_row(source, settings)
    except MeshError as error:
        status = "rejected" if error.reason in REJECTED_REASONS else "failed"
        raise RowError(status, error.reason, str(error)) from error
    return records.rows_to_table([row], settings.record)


def _converted_row(source: SourceObject, settings: PreprocessConfig) -> dict[str, Any]:
    from g3pt.geometry.convert import mesh_to_tensors

    seed = object_seed(source.id, settings.seed)
    vertices, faces, about = _load(source, settings)
    found = mesh_to_tensors(vertices, faces, settings.convert, seed)
    solid_vertices, solid_faces = found.pop("solid")
    row = records.empty_row(source.id, settings.record) | source.columns() | found
    row |= about | {"status": "ok"}
    if settings.views:
        row["views"], row["view_cameras"] = _views(solid_vertices, solid_faces, settings, seed)
    if settings.keep_solid:
        row["solid"] = records.encode_solid(solid_vertices, solid_faces)
    return row


def _load(source: SourceObject, settings: PreprocessConfig) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Vertices, faces, and the columns that are known only now."""
    if source.source == "shapes":
        from g3pt.shapes import make_shape

        shape = make_shape(source.id, settings.seed)
        about = {"up_axis": "y", "caption": shape.caption, "caption_source": "template", "category": shape.family}
        return shape.vertices, shape.faces, about
    from g3pt.geometry.load import load_mesh

    root = Path(settings.input)
    mesh = load_mesh(root / source.path, root)
    return mesh.vertices, mesh.faces, {"up_axis": mesh.up_axis}


def _views(
    vertices: np.ndarray, faces: np.ndarray, settings: PreprocessConfig, seed: int
) -> tuple[list[bytes], np.ndarray]:
    from g3pt.geometry.render import render_views

    return render_views(vertices, faces, settings.views, settings.view_size, seed)


def object_seed(object_id: str, seed: int) -> int:
    """A seed of its own for each object: independent of which others are converted, and in which order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{object_id}".encode()).digest()[:7], "big")


def warm_up() -> None:
    """Import and compile what a conversion needs, on a small mesh: it must not count against the first object."""
    from g3pt.geometry.convert import mesh_to_tensors

    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int64)
    mesh_to_tensors(corners, faces, ConvertConfig(resolution=16, num_surface=8, num_sharp=8, num_queries=8), 0)


def warm_up_with_views() -> None:
    """`warm_up`, and start the renderer."""
    from g3pt.geometry.render import render_views

    warm_up()
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float64)
    render_views(corners, np.array([[0, 1, 2]]), 1, 16, 0)


# -------------------------------------------------------------------------------------------------------------- shard

_sandboxes: dict[tuple[float, float, str], Sandbox] = {}


def _sandbox(config: PreprocessConfig) -> Sandbox:
    """This process's child for these limits: it lives on from shard to shard."""
    key = (config.time_limit_s, config.memory_limit_gb, "warm_up_with_views" if config.views else "warm_up")
    if key not in _sandboxes:
        close_sandboxes()
        _sandboxes[key] = Sandbox(timeout_s=key[0], memory_limit_gb=key[1], warm_up=f"{__name__}:{key[2]}")
    return _sandboxes[key]


def close_sandboxes() -> None:
    """End this process's children."""
    for box in _sandboxes.values():
        box.close()
    _sandboxes.clear()


def process_shard(task: ShardTask, config: PreprocessConfig) -> dict[str, Any]:
    """Convert a shard's objects and write it. Returns its sidecar with its index."""
    with doing(f"converting {records.shard_name(task.index)} of {config.output}"):
        return _process_shard(task, config)


def _process_shard(task: ShardTask, config: PreprocessConfig) -> dict[str, Any]:
    box, arguments = _sandbox(config), asdict(config)
    rows, seconds = [], {}
    for item in task.objects:
        result = box.call("pipelines.preprocess:convert_object", {"item": asdict(item), "config": arguments})
        rows.append(_row(item, result.status, result.error, result.table, config.record))
        seconds[item.id] = result.seconds
    sidecar = records.write_shard(
        Path(config.output),
        task.index,
        rows,
        config.record,
        config_sha256=records.config_hash(config.settings),
        inputs_sha256=inputs_hash(task.objects),
        num_shards=task.num_shards,
        seconds=seconds,
    )
    return {"index": task.index, "sidecar": sidecar}


def _row(
    item: SourceObject, status: str, error: str, table: pa.Table | None, record: records.RecordConfig
) -> dict[str, Any]:
    if table is None:
        return records.empty_row(item.id, record) | item.columns() | {"status": status, "error": error}
    return {name: records.column_values(table[name].combine_chunks())[0] for name in table.column_names}


Runner = Callable[[list[ShardTask], PreprocessConfig], Iterable[dict[str, Any]]]


def map_here(tasks: list[ShardTask], config: PreprocessConfig) -> Iterator[dict[str, Any]]:
    """Shards one after another in this process, without Ray."""
    try:
        for task in tasks:
            yield process_shard(task, config)
    finally:
        close_sandboxes()


def map_on_ray(tasks: list[ShardTask], config: PreprocessConfig) -> Iterator[dict[str, Any]]:
    """Shards as Ray Data tasks, one block each, in the order in which they finish."""
    from pipelines.cluster import connect

    connect(config.ray_address)
    import ray

    arguments = json.dumps(asdict(config))
    items = [{"task": task.to_json(), "config": arguments} for task in tasks]
    # Without the repartition Ray fuses a small read with the map into one task: no parallelism, nothing saved before a failure.
    data = ray.data.from_items(items).repartition(len(items))
    done = data.map_batches(_process_batch, batch_size=None, num_cpus=1, concurrency=config.num_workers)
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        for text in batch["done"]:
            yield json.loads(text)


def _process_batch(batch: dict[str, Any]) -> dict[str, list[str]]:
    pairs = zip(batch["task"], batch["config"], strict=True)
    done = [
        process_shard(ShardTask.from_json(str(task)), PreprocessConfig(**json.loads(str(config))))
        for task, config in pairs
    ]
    return {"done": [json.dumps(item) for item in done]}


# ---------------------------------------------------------------------------------------------------------------- run


def preprocess(config: PreprocessConfig, run_shards: Runner = map_on_ray) -> str | None:
    """Bring the dataset at config.output up to date with its source. Returns its folder, None for a dry run."""
    config = _absolute(config)
    _check_output(config)
    if config.dry_run and not _input_exists(config):
        print(f"plan for {config.output}: --input {config.input} does not exist yet")
        return None
    objects = list_objects(config.source, config.input, config.limit, config.seed)
    plan = make_plan(config, objects)
    said = "plan" if config.dry_run else "preprocess"
    print(
        f"{said}: {len(objects)} objects of --source {config.source} -> {config.output} ({plan.num_shards} shards)",
        flush=True,
    )
    for line in plan.lines():
        print(f"  {line}", flush=True)
    if config.dry_run:
        return None
    if config.views and plan.tasks:
        _check_renderer(config)
    started = time.monotonic()
    note = working_in(config.output, total=len(objects), flags=asdict(config))
    with note, on_disk(lambda: _finished_shards(config, plan)), logged(cards.preprocessing(config), config.output) as outcome:
        shards = _bring_up_to_date(config, plan, run_shards)
        summary = records.write_dataset(Path(config.output), config.record, config.settings, plan.num_shards, shards)
        _report(config, plan, shards, summary, time.monotonic() - started, outcome)
        if not summary["counts"].get("ok"):
            raise RuntimeError(f"no object is ok: {_counted(summary['failures'])}")
    return config.output


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Local paths made absolute: Ray changes its workers' working directory."""
    paths = {"output": config.output, "input": config.input}
    fixed = {name: absolute(path) for name, path in paths.items() if path}
    return PreprocessConfig(**{field.name: getattr(config, field.name) for field in fields(config)} | fixed)


def _check_output(config: PreprocessConfig) -> None:
    with bad_input("--output "):
        folder = records.local_folder(config.output)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        if (folder / "dataset.json").exists():
            records.open_dataset(folder)


def _input_exists(config: PreprocessConfig) -> bool:
    return config.source != "dir" or config.input is None or "://" in config.input or Path(config.input).exists()


def _check_renderer(config: PreprocessConfig) -> None:
    from g3pt.geometry.render import renderer_available

    problem = renderer_available()
    if problem:
        raise UsageError(f"--views {config.views}: no renderer starts here ({problem}); leave --views out")


def _bring_up_to_date(config: PreprocessConfig, plan: Plan, run_shards: Runner) -> dict[int, dict[str, Any]]:
    """Write what is stale, remove what is extra. Returns index -> sidecar of the whole dataset."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.tasks or plan.extra:
        (folder / "dataset.json").unlink(missing_ok=True)  # until the work is done this is no complete dataset
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for index in plan.extra:
        for ending in ("json", "parquet"):
            (folder / f"{records.shard_name(index)}.{ending}").unlink(missing_ok=True)
    shards = dict(plan.current)
    if not plan.tasks:
        return shards
    with Progress("preprocess", sum(len(task.objects) for task in plan.tasks), "objects") as progress:
        done = failed = 0
        for finished in run_shards(plan.tasks, config):
            sidecar = shards[finished["index"]] = finished["sidecar"]
            done, failed = done + sidecar["rows"], failed + sum(sidecar["failures"].values())
            progress.show(done, failed=failed)
    return shards


def _finished_shards(config: PreprocessConfig, plan: Plan) -> str:
    """What a stopped command leaves."""
    left = sum(not (Path(config.output) / f"{records.shard_name(task.index)}.json").exists() for task in plan.tasks)
    total = len(plan.tasks) + len(plan.current)
    return f"{total - left} of {total} shards are finished ({config.output})"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _report(
    config: PreprocessConfig, plan: Plan, shards: dict[int, dict], summary: dict[str, Any], seconds: float, outcome: Outcome
) -> None:
    """Say what the dataset holds, and what MLflow shows of it if anything was done."""
    done = [value for task in plan.tasks for value in shards[task.index]["seconds"].values()]
    print(
        f"dataset: {_counted(summary['counts'])}; splits {_counted(summary['splits'])}; {len(shards)} shards",
        flush=True,
    )
    if summary["failures"]:
        print(f"  not ok: {_counted(summary['failures'])}", flush=True)
    outcome.nothing_done = not done
    if not done:
        return
    mean, longest = sum(done) / len(done), max(done)
    print(f"  {mean:.2f} s per object (mean), {longest:.2f} s at most, {seconds:.0f} s in all", flush=True)
    counts, fingerprint = summary["counts"], summary["fingerprint"]
    outcome.metrics |= {"objects_ok": float(counts.get("ok", 0)), "objects_not_ok": float(sum(counts.values()) - counts.get("ok", 0))}
    outcome.metrics |= {f"not_ok/{name}": float(count) for name, count in summary["failures"].items()}
    outcome.metrics |= {f"split/{name}": float(count) for name, count in summary["splits"].items()}
    outcome.metrics |= {"objects_done": float(len(done)), "seconds": seconds, "seconds_per_object": mean, "seconds_per_object_max": longest}
    outcome.name = f"{Path(config.output).name}-r{config.resolution}-{fingerprint[: cards.SHORT]}"
    outcome.params |= {"fingerprint": fingerprint, "num_shards": plan.num_shards}
    outcome.dataset = cards.DatasetInput(name=Path(config.output).name, fingerprint=fingerprint, path=config.output, context="made here")
    outcome.artifacts.append(Path(config.output) / "dataset.json")
