"""A node of a cluster is lost while a run trains on it: real raylets on this machine, of one CPU each.

By hand, through `make soak`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.paths import REPOSITORY
from pipelines.train import run
from pipelines.train.checkpoints import checkpointed
from tests.jobs import kills
from tests.pipelines.train.test_run import TOY, records_of, toy_spec

STEPS, SLEEP_S = 120, 0.1


@pytest.mark.soak
def test_a_run_goes_on_when_a_node_is_killed_and_has_the_loss_it_would_have_had(tmp_path: Path) -> None:
    """Head without CPUs and two nodes, a worker on each; one raylet is killed, and a node joins later."""
    from ray.cluster_utils import Cluster

    whole = run.train_run(toy_spec(STEPS, dropout=0.0), tmp_path / "whole", num_workers=0, build=TOY)
    spec = toy_spec(STEPS, dropout=0.0, sleep_s=SLEEP_S)
    run_dir = tmp_path / "runs" / spec.name
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        _, lost = (cluster.add_node(num_cpus=1, object_store_memory=small["object_store_memory"]) for _ in range(2))
        (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
        program = (
            "import json; from tests.pipelines.train.test_run import *\n"
            f"spec = RunSpec.from_dict(json.loads(Path({str(tmp_path / 'spec.json')!r}).read_text()))\n"
            f"train.train_run(spec, {str(tmp_path / 'runs')!r}, num_workers=2, ray_address={cluster.address!r}, "
            f"build=TOY)\n"
        )
        with open(tmp_path / "stderr.txt", "w") as err:
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            driver = subprocess.Popen(
                [sys.executable, "-c", program], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=err
            )
        (tmp_path / "stdout.txt").touch()
        kills.wait_until(driver, tmp_path, lambda: checkpointed(run_dir) >= 48, 500)
        cluster.remove_node(lost, allow_graceful=False)
        reached, killed = checkpointed(run_dir), time.monotonic()
        time.sleep(5)
        cluster.add_node(num_cpus=1, object_store_memory=small["object_store_memory"])
        assert driver.wait(timeout=500) == 0, (tmp_path / "stderr.txt").read_text()[-4000:]
        told = (tmp_path / "stderr.txt").read_text()
        print(f"done {time.monotonic() - killed:.0f} s after the kill at {reached} of {4 * STEPS} samples")
    finally:
        cluster.shutdown()
    assert reached < 4 * STEPS and "(1 of 3)" in told, told
    for ours, theirs in zip(records_of(run_dir), records_of(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
