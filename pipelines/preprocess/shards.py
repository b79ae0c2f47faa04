"""Converts shards: each mesh in a killable child (pipelines.preprocess.sandbox), each shard as one row of a Ray Data
pipeline, completed by one rename.

How: a row is the JSON of a shard's task, the result that of its sidecar. Tensors never pass through Ray: the worker
writes its shard to storage. The plan is read in windows of WINDOW shards, so that a hundred thousand of them are never
all in the driver's memory; the largest shards of a window are converted first.

Ours: status `failed` means that reading or converting went wrong. `rejected` means that the file was read but is not an
      object we accept (no faces, no extent, not finite, too large, refers to files outside its folder), or that its
      solid is outside a bound of g3pt.geometry.quality; such a row keeps its measurements but has no tensors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from g3pt.data import datasets, reading, records
from g3pt.data.storage import location
from g3pt.geometry.convert import ConvertConfig
from pipelines.cli.failures import doing, placed
from pipelines.cluster.nodes import node_name
from pipelines.cluster.place import place
from pipelines.cluster.storage import join
from pipelines.cluster.turns import Turn, Turns, turns_on_ray
from pipelines.cluster.waiting import Need, asked, begun, node_resources, refuse_impossible
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.plan import ShardTask
from pipelines.preprocess.sandbox import Result, Sandbox
from pipelines.preprocess.sources import SourceObject, inputs_hash
from pipelines.preprocess.sources.fetch import drop_downloads, fetched
from pipelines.preprocess.sources.hub import at_once
from pipelines.preprocess.views import VIEW_SECONDS, rendered, view_seconds_of

ONE_TASK = Need(count=1, each={"CPU": 1.0}, remedy="start a node that offers CPUs")
WINDOW = 4096  # shards in one pipeline; between two, workers wait for the last shard
MAX_RETRIES = 10  # of a shard whose worker or node died; a mesh that kills its child needs no retry
REJECTED_REASONS = ("no-faces", "zero-extent", "non-finite", "too-large", "external-uri")

# ------------------------------------------------------------------------------------------------------------- object


class RowError(Exception):
    """The object becomes a row without tensors, with this status and short reason."""

    def __init__(self, status: str, reason: str, text: str) -> None:
        super().__init__(text)
        self.status, self.reason = status, reason


def convert_object(item: dict[str, Any], config: dict[str, Any]) -> pa.Table:
    """Convert one object to a table of one row. Runs in the sandbox's child, so arguments are JSON values."""
    from g3pt.geometry.reading import MeshError

    settings, source = PreprocessConfig(**config), SourceObject.of(item)
    try:
        row = _converted_row(source, settings)
    except MeshError as error:
        status = "rejected" if error.reason in REJECTED_REASONS else "failed"
        raise RowError(status, error.reason, str(error)) from error
    seconds = row.pop(VIEW_SECONDS, 0.0)
    table = records.rows_to_table([row], settings.record)
    return table.replace_schema_metadata({**table.schema.metadata, VIEW_SECONDS: str(seconds)})


def _converted_row(source: SourceObject, settings: PreprocessConfig) -> dict[str, Any]:
    from g3pt.geometry.convert import convert_mesh
    from g3pt.geometry.quality import quality_faults

    seed = object_seed(source.id, settings.seed)
    vertices, faces, about = _load(source, settings)
    found = convert_mesh(vertices, faces, settings.convert, seed)
    solid_vertices, solid_faces = found.pop("solid")
    row = records.empty_row(source.id, settings.record) | source.columns() | about
    if faults := quality_faults(found, settings.num_queries):
        figures = {name: found[name] for name in settings.record.numbers}
        return (
            row | figures | {"status": "rejected", "error": f"{faults[0][0]}: {'; '.join(text for _, text in faults)}"}
        )
    row |= found | {"status": "ok"}
    if settings.views:
        row |= rendered(source, settings, (solid_vertices, solid_faces), found, seed)
    if settings.keep_solid:
        row["solid"] = records.encode_solid(solid_vertices, solid_faces)
    return row


def _load(source: SourceObject, settings: PreprocessConfig) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """(vertices, faces, columns that are known only now)."""
    if source.source == "shapes":
        from g3pt.shapes import make_shape

        shape = make_shape(source.id, settings.seed)
        about = {"up_axis": "y", "caption": shape.caption, "caption_source": "template", "category": shape.family}
        return shape.vertices, shape.faces, about
    from g3pt.geometry.load import load_mesh

    root = Path(settings.input)
    mesh = load_mesh(root / source.path, root)
    return mesh.vertices, mesh.faces, {"up_axis": mesh.up_axis}


def object_seed(object_id: str, seed: int) -> int:
    """The seed of one object, independent of which other objects are converted and in which order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{object_id}".encode()).digest()[:7], "big")


def warm_up() -> None:
    """Import and compile what a conversion needs, on a small open mesh, to save the first object that time."""
    from g3pt.geometry.convert import convert_mesh

    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2]], dtype=np.int64)
    convert_mesh(corners, faces, ConvertConfig(resolution=16, num_surface=8, num_sharp=8, num_queries=8), 0)


def warm_up_with_views() -> None:
    """`warm_up`, and also compile the renderer."""
    from g3pt.geometry.appearance import clay
    from g3pt.geometry.render import render_views

    warm_up()
    render_views(clay(np.eye(3), np.array([[0, 1, 2]])), 1, 16, 0)


# -------------------------------------------------------------------------------------------------------------- shard

_sandboxes: dict[tuple[float, float, str], Sandbox] = {}


def _sandbox(config: PreprocessConfig) -> Sandbox:
    """This process's sandbox for these limits; it is reused from shard to shard."""
    key = (config.time_limit_s, config.memory_limit_gb, "warm_up_with_views" if config.views else "warm_up")
    if key not in _sandboxes:
        close_sandboxes()
        _sandboxes[key] = Sandbox(timeout_s=key[0], memory_limit_gb=key[1], warm_up=f"{__name__}:{key[2]}")
    return _sandboxes[key]


def close_sandboxes() -> None:
    """Kill this process's children."""
    for box in _sandboxes.values():
        box.close()
    _sandboxes.clear()


def process_shard(task: ShardTask, config: PreprocessConfig, turn: Turn = at_once) -> dict[str, Any]:
    """Convert a shard's objects and write the shard. Returns its index, its sidecar, and the name of this node."""
    with doing(f"converting {records.shard_name(task.index)} of {config.output}"):
        return _process_shard(task, config, turn)


def _process_shard(task: ShardTask, config: PreprocessConfig, turn: Turn) -> dict[str, Any]:
    box, arguments = _sandbox(config), asdict(config)
    rows, seconds, inputs, view_seconds = [], {}, [], 0.0
    for found in fetched(task.objects, config, turn):
        item = found.item
        if found.problem:
            result = Result(status="failed", error=found.problem)
        else:
            result = box.call("pipelines.preprocess.shards:convert_object", {"item": asdict(item), "config": arguments})
        rows.append(_row(item, result.status, result.error, result.table, config.record))
        seconds[item.id] = result.seconds
        view_seconds += view_seconds_of(result.table)
        inputs.append(found)
    sidecar = datasets.write_shard(
        location(config.output),
        task.index,
        rows,
        config.record,
        config_sha256=records.config_hash(config.settings),
        settings=config.settings,
        inputs_sha256=inputs_hash(found.item for found in inputs),
        num_shards=task.num_shards,
        seconds=seconds,
        view_seconds=view_seconds,
        files={found.item.id: found.stamps for found in inputs},
    )
    if config.drop_downloads:
        drop_downloads(inputs, config)
    return {"index": task.index, "sidecar": sidecar, "node": node_name()}


def _row(
    item: SourceObject, status: str, error: str, table: pa.Table | None, record: records.RecordConfig
) -> dict[str, Any]:
    if table is None:
        return records.empty_row(item.id, record) | item.columns() | {"status": status, "error": error}
    return {name: reading.column_values(table[name].combine_chunks())[0] for name in table.column_names}


Runner = Callable[[Sequence[ShardTask], PreprocessConfig], Iterable[dict[str, Any]]]


def map_here(tasks: Sequence[ShardTask], config: PreprocessConfig) -> Iterator[dict[str, Any]]:
    """Convert shards one after another in this process, without Ray."""
    turns = Turns(config.download_rate)
    try:
        for task in tasks:
            yield process_shard(task, config, turns.take)
    finally:
        close_sandboxes()


def map_on_ray(tasks: Sequence[ShardTask], config: PreprocessConfig) -> Iterator[dict[str, Any]]:
    """Convert shards on Ray Data, in the order in which they finish.

    The cluster is joined, and its storage and CPUs are checked, at the call. Work begins when the first result is asked
    for.
    """
    read = [Path(config.input, item.path) for item in tasks[0].objects[:1] if config.source == "dir" and config.input]
    join(config.ray_address, writes=[config.output], reads=read)
    refuse_impossible(ONE_TASK)
    return _on_ray_data(tasks, config)


def _on_ray_data(tasks: Sequence[ShardTask], config: PreprocessConfig) -> Iterator[dict[str, Any]]:
    import ray

    settings, rest = json.dumps(asdict(config)), iter(tasks)
    turn = turns_on_ray(config.download_rate) if config.source == "objaverse" else at_once
    memory = memory_request(config.memory_limit_gb, node_resources())
    with asked("preprocess", ONE_TASK) as key:
        while window := list(itertools.islice(rest, WINDOW)):
            rows = [{"task": task.to_json()} for task in sorted(window, key=_bytes, reverse=True)]
            # One block per shard: a shard that is done is told at once, and a lost worker repeats no other.
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _convert,
                fn_kwargs={"config": settings, "key": key, "turn": turn},
                batch_size=1,
                num_cpus=ONE_TASK.each["CPU"],
                memory=memory,
                concurrency=config.num_workers,
                ray_remote_args_fn=_retries,
            )
            for row in done.iter_rows():
                yield json.loads(row["sidecar"])


def _retries() -> dict[str, Any]:
    """Ray Data itself would repeat a shard whose workers die without end."""
    return {"max_retries": MAX_RETRIES}


def memory_request(limit_gb: float, nodes: Iterable[Mapping[str, float]]) -> float:
    """Bytes that a shard's task asks of Ray: the limit of a conversion, at most a CPU's share of the memory of the
    leanest node, so that every CPU can have one.
    """
    cpus = ONE_TASK.each["CPU"]
    shares = [cpus * node["memory"] / node["CPU"] for node in nodes if node.get("CPU") and node.get("memory")]
    return float(int(min([limit_gb * 2**30, *shares])))


def _bytes(task: ShardTask) -> int:
    """Bytes of the shard's mesh files, as far as the plan knows them."""
    return sum(item.size or 0 for item in task.objects)


def _convert(batch: dict[str, Any], config: str, key: str, turn: Turn) -> dict[str, Any]:
    """Ray Data's interface around `_process_text`: {'task': (1,)} -> {'sidecar': [text]}."""
    return {"sidecar": [_process_text(task, config, key, turn) for task in batch["task"]]}


def _process_text(task: str, config: str, key: str = "", turn: Turn = at_once) -> str:
    """`process_shard` with JSON text as argument and result; `key` is for `begun`."""
    if key:
        begun(key)
    with placed(place):
        return json.dumps(process_shard(ShardTask.from_json(task), PreprocessConfig(**json.loads(config)), turn))
