"""Three commands on a local Ray and a second node that has a disk of its own at one path: a mount namespace.

    python -m tests.pipelines.cluster.disk_of_its_own FOLDER

FOLDER/local is that path. Prints one line per command: its name and the error that ended it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.cli.errors import UsageError
from pipelines.cluster import session, storage
from tests.die_with_parent import die_with_parent
from tests.jobs.ray_head import free_port


def second_node(address: str, folder: Path) -> subprocess.Popen[bytes]:
    """A raylet that sees an empty file system at `folder`."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--num-cpus=1", "--block"]
    ray += [f"--dashboard-agent-listen-port={free_port()}", f"--object-store-memory={80 * 2**20}"]
    inside = ["sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(folder), *ray]
    with open(folder.parent / "node.log", "wb") as log:
        environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        return subprocess.Popen(
            ["unshare", "-m", *inside], env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent
        )


def commands(folder: Path) -> dict[str, Callable[[], object]]:
    """Each command with its output in `folder`."""
    from pipelines.generate.config import GenerateConfig
    from pipelines.generate.job import generate
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.job import preprocess
    from pipelines.train.run import train_run
    from tests.pipelines.toy_generator import write_toy_generator
    from tests.pipelines.train.test_run import TOY, toy_spec

    model = write_toy_generator(folder.parent / "model")
    small = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
    return {
        "preprocess": lambda: preprocess(
            PreprocessConfig(source="shapes", limit=4, output=str(folder / "shapes"), **small)
        ),
        "train": lambda: train_run(toy_spec(), folder / "runs", num_workers=1, build=TOY),
        "generate": lambda: generate(GenerateConfig(model=str(model), text="a chair", output=str(folder / "meshes"))),
    }


def main(folder: Path) -> None:
    local = folder / "local"
    local.mkdir(parents=True)
    storage.SEEN_WITHIN_S = 1.0
    session.connect("local", num_cpus=1)
    import ray

    node = second_node(ray.get_runtime_context().gcs_address, local)
    try:
        found = commands(local)
        deadline = time.monotonic() + 60
        while sum(each["Alive"] for each in ray.nodes()) < 2:
            assert node.poll() is None and time.monotonic() < deadline, (folder / "node.log").read_text()[-2000:]
            time.sleep(0.2)
        for name, command in found.items():
            try:
                print(name, command())
            except UsageError as error:
                print(name, error)
    finally:
        node.terminate()
        session.disconnect()
        node.wait(timeout=30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
