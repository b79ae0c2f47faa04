"""The living nodes of a cluster, and one function run on each of them at once.

How: a call is pinned to its node and takes no CPU, so that a busy cluster answers too.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.cluster import session

NODE_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node."""

    id: str
    address: str
    cpus: float
    gpus: float
    is_driver: bool


class Nodes:
    """The cluster's nodes; empty until `connect` succeeds."""

    def __init__(self) -> None:
        self.found: list[Node] = []

    @classmethod
    def living(cls) -> Nodes:
        """The living nodes of the connected cluster."""
        import ray

        own, nodes = ray.get_runtime_context().get_node_id(), cls()
        for node in ray.nodes():
            if node["Alive"]:
                cpus, gpus_ = (float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
                nodes.found.append(
                    Node(
                        id=node["NodeID"],
                        address=node["NodeManagerAddress"],
                        cpus=cpus,
                        gpus=gpus_,
                        is_driver=node["NodeID"] == own,
                    )
                )
        return nodes

    def connect(self, ray_address: str | None) -> None:
        """Join or start the cluster and list its nodes."""
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # it warns that this is not the main thread
        session.connect(ray_address)
        self.found = self.living().found

    def on_each(
        self, function: Callable[..., Any], *args: Any, timeout_s: float = NODE_TIMEOUT_S
    ) -> list[tuple[Node, Any]]:
        """(node, result) of the function on each node; the result is the exception if it failed or did not answer in
        time.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = ray.remote(num_cpus=0, max_retries=0)(function)
        started = [
            (
                node,
                remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*args),
            )
            for node in self.found
        ]
        deadline = time.monotonic() + timeout_s
        return [(node, self._answer(reference, deadline)) for node, reference in started]

    def _answer(self, reference: Any, deadline: float) -> Any:
        import ray

        try:
            return ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            return TimeoutError("no answer in time")
        except Exception as error:  # whatever went wrong there is this node's result
            return getattr(error, "cause", None) or error


def node_id() -> str:
    """This node's id inside Ray, else the host's name."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else socket.gethostname()


def node_name() -> str:
    """This node's address inside Ray, else the host's name."""
    if not session.is_connected():
        return socket.gethostname()
    import ray

    return ray.util.get_node_ip_address()
