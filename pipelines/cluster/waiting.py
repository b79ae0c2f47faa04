"""What work asks of the cluster, whether it can ever get it, and a line every 30 s while it waits.

How: `asked(stage, need)` around the work compares the request with every node, and with the maxima of an autoscaler if
there is one. What can never come is a UsageError at once. Otherwise a thread prints, until a worker calls `begun(key)`:

    progress stage=train state=waiting run=cvq-nano-s0-1a2b3c4d needs=4xCPU free=2 total=2

`free` and `total` are the cluster's, in the request's unit. The first line comes at once if too little is free.
Ours: a key in Ray's own store says that a worker has begun, because free resources do not: they also fall when other
work takes them. Ray Train itself waits for ever and tells only its controller's log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.cli.errors import UsageError
from pipelines.cli.progress import is_terminal, say

EVERY_S, LOOK_S = 30.0, 1.0  # between two lines; between two looks whether a worker has begun
Resources = Mapping[str, float]
STATUS_KEY = "__autoscaling_status"  # where Ray's autoscaler leaves its status
NO_TYPE = "node_"  # how the node types begin that Ray makes up on a cluster without an autoscaler
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # the cluster's YAML file, as `ray up` leaves it on the head


@dataclass(frozen=True, kw_only=True)
class Need:
    """`count` bundles of resources; each must fit on one node."""

    count: int
    each: Resources
    remedy: str = ""  # what a person may change

    @property
    def unit(self) -> str:
        """The resource that is scarce: the first that is not CPU, else CPU."""
        return next((name for name, amount in self.each.items() if name != "CPU" and amount), "CPU")

    def __str__(self) -> str:
        amount = self.each.get(self.unit, 0.0)
        return f"{self.count}x{'' if amount == 1 else f'{amount:g}'}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of node that an autoscaler can start, at most `most` of them (None: any number)."""

    resources: Resources
    most: int | None = None


def can_ever(need: Need, nodes: Iterable[Resources], autoscaler_max: Sequence[NodeType] | None = ()) -> bool:
    """Whether the request fits on empty nodes: those that are there, and those that an autoscaler may start.

    autoscaler_max is empty without an autoscaler, and None if its limits are unknown: then nothing is excluded.
    """
    if autoscaler_max is None:
        return True
    there = sum(fitting(need.each, node) for node in nodes)
    # An autoscaler's own nodes are among those that are there: whichever count is larger.
    started = sum(
        fitting(need.each, kind.resources) * (math.inf if kind.most is None else kind.most)
        for kind in autoscaler_max
        if fitting(need.each, kind.resources)
    )
    return max(there, started) >= need.count


def fitting(each: Resources, node: Resources) -> float:
    """How many bundles a node has room for; infinite for an empty bundle."""
    return min(
        (math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in each.items() if amount), default=math.inf
    )


@contextlib.contextmanager
def asked(stage: str, need: Need, run: str = "") -> Iterator[str]:
    """Around work that asks the connected cluster for `need`.

    Yields the key for `begun`. UsageError if the request can never be met.
    """
    import ray
    from ray.experimental import internal_kv

    refuse_impossible(need)
    key, done = f"g3pt-begun-{uuid.uuid4().hex}", threading.Event()

    def watch() -> None:
        for looked in itertools.count():
            with contextlib.suppress(Exception):  # a cluster that is going away is reported by the work itself
                if not ray.is_initialized() or internal_kv._internal_kv_exists(key):
                    return
                if looked % round(EVERY_S / LOOK_S) == 0:
                    free, total = (
                        found.get(need.unit, 0.0) for found in (ray.available_resources(), ray.cluster_resources())
                    )
                    if looked or free < need.count * need.each.get(need.unit, 0.0):
                        say(waiting_line(stage, need, free, total, run))
            if done.wait(LOOK_S):
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield key
    finally:
        done.set()  # nobody waits for the thread: a question to a cluster that has gone away takes long
    with contextlib.suppress(Exception):
        internal_kv._internal_kv_del(key)


def refuse_impossible(need: Need) -> None:
    """UsageError if the connected cluster can never meet the request."""
    nodes = node_resources()
    if not can_ever(need, nodes, autoscaler_max()):
        raise UsageError(too_much(need, nodes))


def node_resources() -> list[Resources]:
    """The resources of each living node of the connected cluster, free or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def begun(key: str) -> None:
    """Called by a worker when it has started: nobody waits any more."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, b"1")


def waiting_line(stage: str, need: Need, free: float, total: float, run: str = "") -> str:
    """The line about waiting; in words on a terminal."""
    if is_terminal(sys.stderr):
        return f"  {run or stage}: waits for {need}, {free:g} of {total:g} are free"
    named = f" run={run}" if run else ""
    return f"progress stage={stage} state=waiting{named} needs={need} free={free:g} total={total:g}"


def too_much(need: Need, nodes: Sequence[Resources]) -> str:
    """Why the request can never be met, with what there is and the remedy."""
    have = [node.get(need.unit, 0.0) for node in nodes]
    there = f"{sum(have):g} {need.unit} on {len(have)} node{'s' * (len(have) != 1)}"
    widest = f", at most {max(have):g} on one" if len(have) > 1 else ""
    remedy = f"; {need.remedy}" if need.remedy else ""
    return f"the cluster can never provide {need}: it has {there}{widest}, and no autoscaler adds enough{remedy}"


def autoscaler_max() -> list[NodeType] | None:
    """The kinds of nodes that the connected cluster's autoscaler may start: none without one, None if unknown."""
    import ray
    from ray._private.state import state
    from ray.experimental import internal_kv

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [
            NodeType(resources=dict(kind.resources), most=None if kind.max_count < 0 else kind.max_count)
            for kind in config.node_group_configs
        ]
    labels = {node.get("Labels", {}).get("ray.io/node-group", "") for node in ray.nodes() if node["Alive"]}
    types = node_types(internal_kv._internal_kv_get(STATUS_KEY) or b"{}") | (labels - {""})
    if not types:
        return []
    file = BOOTSTRAP.expanduser()
    return limits(file.read_text(encoding="utf-8"), types) if file.is_file() else None


def node_types(status: bytes) -> set[str]:
    """The names of the node types in an autoscaler's status; empty for a cluster without an autoscaler."""
    try:
        report = json.loads(status).get("autoscaler_report") or {}
    except (ValueError, AttributeError):
        return set()
    return {name for name in report.get("active_nodes") or {} if not name.startswith(NO_TYPE)}


def limits(text: str, types: set[str]) -> list[NodeType] | None:
    """The node types of a cluster's YAML file; None if it does not have all of `types` or leaves their size open."""
    import yaml

    found = yaml.safe_load(text) or {}
    kinds = found.get("available_node_types") or {}
    if not types <= kinds.keys() or not all(kind.get("resources") for kind in kinds.values()):
        return None
    most = found.get("max_workers")
    return [NodeType(resources=kind["resources"], most=kind.get("max_workers", most)) for kind in kinds.values()]
