"""Storage that a cluster's nodes do not share is found before any work, or at the first file that does not arrive."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cli.paths import REPOSITORY
from pipelines.cluster import storage
from pipelines.cluster.nodes import Node, Nodes, node_id
from pipelines.cluster.storage import NotShared, check_arrived, check_shared, sizes_of


class Cluster(Nodes):
    """Two nodes: this process, and one on which each path below `here` is below `there`."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = str(here), str(there)
        self.found = [
            Node(id=f"{node_id()}{name}", address=f"10.0.0.{number}", cpus=1, gpus=0, is_driver=name == "")
            for number, name in enumerate(("", "-worker"), start=1)
        ]

    def on_each(self, function: Callable[..., Any], *args: Any, **_: Any) -> list[tuple[Node, Any]]:
        moved = [arg.replace(self.here, self.there) if isinstance(arg, str) else arg for arg in args]
        answers = []
        for node, given in zip(self.found, (list(args), moved), strict=True):
            storage.node_id = lambda node=node: node.id
            answers.append((node, function(*given)))
        return answers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(storage, "SEEN_WITHIN_S", 0.3)
    monkeypatch.setattr(storage, "node_id", node_id)
    yield


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder, and what another node has at its path: a folder of its own."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    return tmp_path / "here", tmp_path / "there"


def test_shared_folders_pass_and_nothing_is_left(folders: tuple[Path, Path]) -> None:
    here, _ = folders
    (here / "input").write_text("12345")
    check_shared(Cluster(here, here), [here / "not" / "yet", "s3://bucket/data"], [here / "input", here / "missing"])
    assert [path.name for path in here.iterdir()] == ["input"]


def test_the_node_without_the_folder_is_named_with_the_remedy(folders: tuple[Path, Path]) -> None:
    here, there = folders
    with pytest.raises(
        UsageError, match=rf"^{here}: node 10.0.0.2: it does not see the driver's file: not shared; use .* s3://"
    ):
        check_shared(Cluster(here, there), [here])
    with pytest.raises(UsageError, match="node 10.0.0.2: no such folder there: not shared"):
        check_shared(Cluster(here, there / "missing"), [here])
    assert list(here.iterdir()) == list(there.iterdir()) == []


def test_a_node_that_sees_the_driver_but_writes_elsewhere_is_named(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay over the shared folder: files of the driver show through, its own stay below."""
    here, there = folders
    cluster, plain = Cluster(here, there), storage.read_and_write

    def overlay(folder: str, name: str, text: str) -> str:
        Path(folder, name).write_text(text)
        return plain(folder, name, text)

    monkeypatch.setattr(storage, "read_and_write", overlay)
    with pytest.raises(UsageError, match="node 10.0.0.2: its file does not arrive here: not shared"):
        check_shared(cluster, [here])
    assert list(here.iterdir()) == list(there.iterdir()) == []


def test_an_input_that_a_node_lacks_or_has_otherwise_is_named(folders: tuple[Path, Path]) -> None:
    here, there = folders
    (here / "input").write_text("12345")
    with pytest.raises(UsageError, match=rf"^{here}/input: node 10.0.0.2: no such file there"):
        check_shared(Cluster(here, there), [], [here / "input"])
    (there / "input").write_text("1")
    with pytest.raises(UsageError, match="node 10.0.0.2: it has another file there"):
        check_shared(Cluster(here, there), [], [here / "input"])


def test_a_node_that_does_not_answer_is_a_warning(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = folders
    cluster = Cluster(here, here)
    monkeypatch.setattr(cluster, "on_each", lambda *_, **__: [(cluster.found[1], TimeoutError("no answer in time"))])
    check_shared(cluster, [here])
    assert f"warning: node 10.0.0.2 did not say whether it shares {here}: TimeoutError" in capsys.readouterr().err
    monkeypatch.setattr(
        cluster, "on_each", lambda *_, **__: [(cluster.found[1], ImportError("No module named 'g3pt'"))]
    )
    with pytest.raises(UsageError, match="node 10.0.0.2 cannot run g3pt"):
        check_shared(cluster, [here])


def test_files_of_workers_must_arrive_whole(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("12345")
    files = sizes_of([tmp_path / "table"])
    check_arrived(files | {"s3://bucket/table": 3}, "10.0.0.2")
    (tmp_path / "table").write_text("123")
    with pytest.raises(
        NotShared, match=r"table: worker 10.0.0.2 wrote it, this machine does not see it: not shared storage"
    ):
        check_arrived(files, "10.0.0.2")
    (tmp_path / "table").unlink()
    with pytest.raises(NotShared):
        check_arrived(files, "10.0.0.2")


@pytest.mark.slow
def test_a_node_with_a_disk_of_its_own_ends_each_command_before_any_work(tmp_path: Path) -> None:
    """The node is a raylet in a mount namespace of its own. TMPDIR is too long for the sockets of the driver's Ray."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace of its own is not permitted here")
    temporary = tmp_path / ("long" * 12)
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "tests.pipelines.cluster.disk_of_its_own", str(tmp_path / "it")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    local, said = tmp_path / "it" / "local", dict(line.split(" ", 1) for line in done.stdout.splitlines()[-3:])
    assert said.keys() == {"preprocess", "train", "generate"}
    for name, folder in (("preprocess", "shapes"), ("train", "runs/cvq-toy"), ("generate", "meshes")):
        assert said[name].startswith(f"{local}/{folder}") and ": no such folder there: not shared; use a" in said[name]
    assert list(local.iterdir()) == [], "nothing is left behind"
    assert "Ray's sockets and logs go to /tmp/ray" in done.stderr
