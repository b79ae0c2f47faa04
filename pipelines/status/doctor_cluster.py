"""The checks of `jobs/doctor.py` that use Ray: the cluster, its authentication, each node, MLflow from a worker.

How: each check runs a plain function on every living node at once (`pipelines.cluster.nodes`); a node that does not
answer in time is a finding. Without Ray the same functions run in this process alone. Tokens and passwords are never
printed.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.cli.paths import REPOSITORY
from pipelines.cli.plain_text import duration, without_login
from pipelines.cluster import start
from pipelines.cluster.nodes import NODE_TIMEOUT_S, Node, Nodes
from pipelines.cluster.start import said
from pipelines.cluster.storage import remove_own
from pipelines.status.doctor_machine import (
    Found,
    disk_space,
    failed,
    gpus,
    installed_packages,
    judge_disks,
    ok,
    wanted_packages,
    warning,
)
from pipelines.tracking.client import Tracking, tracking_uri

SKEW_S = 5.0  # largest accepted difference of clocks between driver and worker, beyond the time of the answer
NO_ANSWER = (
    "a head that has ended leaves its address in /tmp/ray/ray_current_cluster: start it again, or leave out "
    "--ray-address and RAY_ADDRESS"
)
RAY_FIRST = "fix `ray` first"
NO_TOKEN = "export RAY_AUTH_MODE=token; ray get-auth-token --generate"


def counted(nodes: Nodes) -> str:
    """`1 node`, `3 nodes`."""
    return f"{len(nodes.found)} node{'s' * (len(nodes.found) != 1)}"


# ---------------------------------------------------------------------------------------------------------------- Ray


def check_ray(nodes: Nodes, ray_address: str | None) -> Found:
    """Check that the cluster can be joined, or that a local one starts, as the commands do it."""
    address, source = start.address_and_source(ray_address)
    try:
        nodes.connect(ray_address)
    except start.NoRay as error:
        return failed(error.cause, error.remedy)
    cpus, gpus_ = sum(node.cpus for node in nodes.found), sum(node.gpus for node in nodes.found)
    what = "a local cluster starts" if address == "local" else f"joined {address}"
    if address == "local" and (folder := start.short_folder()):
        return warning(
            f"{what}, with its sockets and logs in {folder}: TMPDIR is too long for them", "export TMPDIR=/tmp"
        )
    return ok(f"{what} ({source}): {counted(nodes)}, {cpus:g} CPUs, {gpus_:g} GPUs")


def token_source() -> str | None:
    """Where Ray would find a token; None if there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    for file, name in (
        (Path(path) if path else None, "RAY_AUTH_TOKEN_PATH"),
        (Path.home() / ".ray" / "auth_token", "~/.ray/auth_token"),
    ):
        if file and file.is_file() and file.stat().st_size:
            return name
    return None


def check_auth() -> Found:
    """Check what `ray start --head` will require and `ray job submit` will send.

    Runs before Ray starts, since Ray writes a token itself.
    """
    mode, token = os.environ.get("RAY_AUTH_MODE", "").lower(), token_source()
    if mode == "token":
        return (
            ok(f"RAY_AUTH_MODE=token, token from {token}: heads require it, `ray job submit` sends it")
            if token
            else warning("RAY_AUTH_MODE=token without a token", NO_TOKEN)
        )
    if mode:
        return warning(f"RAY_AUTH_MODE={mode}: anyone who can reach a head's ports can run code there", NO_TOKEN)
    if token:
        return warning(
            f"a token ({token}) but no RAY_AUTH_MODE: heads require the token, `ray job submit` does not send it and "
            "fails",
            "export RAY_AUTH_MODE=token",
        )
    return warning(
        "no token, no RAY_AUTH_MODE: heads are open now; the first local run writes a token, which heads then require",
        NO_TOKEN,
    )


# -------------------------------------------------------------------------------------------------------------- nodes


def look_around(names: Sequence[str], storage: str) -> dict[str, Any]:
    """Facts about a node. Runs there."""
    named, problem = gpus()
    about = {
        "time": time.time(),
        "python": platform.python_version(),
        "packages": installed_packages(names),
        "host": socket.gethostname(),
    }
    return about | {
        "gpus": named,
        "gpu_problem": problem,
        "disks": disk_space(storage),
        "repository": str(REPOSITORY),
    }


def clock_of_node() -> float:
    """The node's time, with a short answer. Runs there."""
    return time.time()


def check_nodes(nodes: Nodes, storage: str) -> list[Found]:
    """Check every living node; one finding each."""
    names = list(wanted_packages())
    here = look_around(names, storage)
    found = nodes.on_each(look_around, names, storage, timeout_s=2 * NODE_TIMEOUT_S)
    skews = clock_skews(nodes)  # by now each node has a running worker, so answers are quick
    return [judge_node(node, about, here, skews.get(node.id)) for node, about in found]


def clock_skews(nodes: Nodes) -> dict[str, float]:
    """Node id -> seconds by which its clock is certainly ahead (or, negative, behind), apart from the time of the
    answer.
    """
    before = time.time()
    answers = nodes.on_each(clock_of_node, timeout_s=NODE_TIMEOUT_S)
    after = time.time()
    return {node.id: max(0.0, at - after) + min(0.0, at - before) for node, at in answers if isinstance(at, float)}


def judge_node(node: Node, about: Any, here: dict[str, Any], skew_s: float | None) -> Found:
    """Compare a node with the driver."""
    name = f"{node.address}{' (driver)' if node.is_driver else ''}: {node.cpus:g} CPUs, {node.gpus:g} GPUs"
    if isinstance(about, BaseException):
        remedy = (
            f"look at this node's logs (/tmp/ray/session_latest/logs); the repository must be at {REPOSITORY} "
            f"there, or be sent by `ray job submit --working-dir .`"
        )
        return failed(f"{name}; {said(about)}", remedy)
    problems, remedies, state = [], [], "warning"
    if about["python"].rsplit(".", 1)[0] != here["python"].rsplit(".", 1)[0]:
        state = "failed"
        problems.append(f"Python {about['python']}, driver {here['python']}")
        remedies.append("use one Python version on all nodes")
    other = [
        f"{p} {v or 'missing'} (driver {here['packages'][p]})"
        for p, v in about["packages"].items()
        if v != here["packages"][p]
    ]
    if other:
        problems.append(", ".join(other))
        remedies.append("on that node: pip install -c constraints.txt -e .")
    if about["gpu_problem"] or (node.gpus and not about["gpus"]):
        problems.append(about["gpu_problem"] or "Ray counts GPUs, torch finds none")
        remedies.append("on that node: run nvidia-smi; install a CUDA build of torch")
    if skew_s is not None and abs(skew_s) > SKEW_S:
        problems.append(f"its clock is {duration(abs(skew_s))} {'ahead' if skew_s > 0 else 'behind'}")
        remedies.append("timedatectl set-ntp true")
    disks = judge_disks(about["disks"])
    if disks.state != "ok":
        problems.append(disks.found)
        remedies.append(disks.remedy)
        state = "failed" if disks.state == "failed" else state
    shown = f"{name}, Python {about['python']}" + "".join(f"; {gpu}" for gpu in about["gpus"])
    if problems:
        return Found(state=state, found=f"{shown}; {'; '.join(problems)}", remedy="; ".join(remedies))  # type: ignore[arg-type]
    return ok(f"{shown}, packages as on the driver, clock within {SKEW_S:g} s")


# ------------------------------------------------------------------------------------------------------------- MLflow


def open_store(uri: str) -> str:
    """ "" if MLflow's store opens, else why not. Runs on a node and here."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        Tracking(uri)
    except Exception as error:  # MLflow, SQLAlchemy and requests raise many kinds of errors
        return said(error)
    return ""


def check_mlflow(nodes: Nodes, storage: str) -> Found:
    """Check the store that runs below the storage would use, from here and from each node.

    A new SQLite store is tested and removed.
    """
    wanted = tracking_uri(Path(storage) / "runs")
    name = f".g3pt-doctor-{uuid.uuid4().hex}"
    fresh = wanted.startswith("sqlite:///") and not Path(wanted.removeprefix("sqlite:///")).exists()
    made = fresh and not Path(storage).exists()
    uri = f"sqlite:///{Path(wanted.removeprefix('sqlite:///')).parent / name}.db" if fresh else wanted
    shown = without_login(wanted)
    try:
        here = open_store(uri)
        if here:
            return failed(
                f"{shown}: {here}", "start the server, or unset MLFLOW_TRACKING_URI to use a file beside the output"
            )
        answers = nodes.on_each(open_store, uri, timeout_s=2 * NODE_TIMEOUT_S)
    finally:
        if fresh:
            folder = Path(uri.removeprefix("sqlite:///")).parent
            remove_own(str(folder), name)
            if made and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
    bad = [
        f"{node.address}: {said(answer) if isinstance(answer, BaseException) else answer}"
        for node, answer in answers
        if answer
    ]
    if bad:
        return warning(
            f"{shown} opens here, not on {'; '.join(bad)}",
            "only the driver logs runs, so this matters only if a job's driver runs there",
        )
    what = "would be created: a test store opens" if fresh else "opens"
    if not nodes.found:
        return warning(f"{shown} {what} from here, not tried from a worker", RAY_FIRST)
    return ok(f"{shown} {what} from the driver and from {counted(nodes)}")
