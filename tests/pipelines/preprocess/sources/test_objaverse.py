"""`--source objaverse` with a hub on loopback: selection, downloads, rows, and the cost of a bad server."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from g3pt.data import datasets, reading, records
from pipelines.cli.errors import UsageError
from pipelines.preprocess import shards as stage
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import ShardTask, make_plan
from pipelines.preprocess.sources import Listing, SourceObject
from pipelines.preprocess.sources import hub as client
from pipelines.status.datasets import replanned, retried
from pipelines.tracking import tracked
from tests.hub_server import HubServer, hub_server, use
from tests.toy_objaverse import META, box, lay, mesh, uid

SMALL = {"resolution": 16, "num_surface": 8, "num_sharp": 8, "num_queries": 8}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running
    stage.close_sandboxes()


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The toy objects, without MLflow."""
    use(server, monkeypatch)
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    server.files, server.faults, server.for_ever, server.seen = {}, {}, False, []
    lay(server)
    return server


def config(tmp_path: Path, **change: object) -> PreprocessConfig:
    return PreprocessConfig(
        **{
            "source": "objaverse",
            "input": str(tmp_path / "cache"),
            "output": str(tmp_path / "data"),
            "num_shards": 3,
            **SMALL,
        }
        | change
    )


def listed(tmp_path: Path, **change: object) -> dict[str, SourceObject]:
    settings = config(tmp_path, **change)
    store = make_plan(settings, Listing(settings)).tasks
    return {item.id: item for task in store for item in task.objects}


def run(settings: PreprocessConfig) -> dict[str, dict[str, Any]]:
    """Run the command and return the rows; the sandbox's child is kept for the next call."""
    assert preprocess(settings, run_kept) == settings.output
    info = datasets.open_dataset(settings.output)
    return {row["id"]: row for row in reading.read_rows(info, info.columns, status=None)}


def run_kept(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
    """The work of a task, in this process, from text to text."""
    for task in tasks:
        yield json.loads(stage._process_text(task.to_json(), json.dumps(dataclasses.asdict(settings))))


# ---------------------------------------------------------------------------------------------------------------
# listing


def test_an_object_brings_its_licence_author_and_address(hub: HubServer, tmp_path: Path) -> None:
    found = listed(tmp_path)
    assert found[uid(1)] == SourceObject(
        id=uid(1), source="objaverse", path=mesh(1), license="CC-BY-NC-4.0", author="Author 1", name="Thing 1 ?",
        category="sofa",
        attribution_url="https://sketchfab.com/3d-models/uid1", tags=("Red", "old wood"),
        source_url=f"https://huggingface.co/datasets/allenai/objaverse/resolve/main/{mesh(1)}",
    )  # fmt: skip
    assert [found[uid(number)].license for number in range(6)] == [
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "CC0-1.0",
        "CC-BY-SA-4.0",
        "CC-BY-4.0",
        "",
    ]
    assert [found[uid(number)].category for number in range(6)] == ["chair", "sofa", "", "armchair", "", ""]
    assert found[uid(5)].attribution_url == "https://sketchfab.com/3d-models/uid5" and found[uid(5)].author == ""
    assert all(not name.startswith("glbs/") for name in hub.asked()), "whoever converts a mesh fetches it"


@pytest.mark.parametrize(
    ("change", "kept", "read"),
    [
        ({}, "012345", "012"),
        ({"ids": [1, 4]}, "14", "1"),
        ({"categories": "sofa"}, "1", "1"),
        ({"categories": "chair"}, "03", "0"),  # uid3 is an armchair too
        ({"categories": "armchair"}, "3", "0"),
        ({"categories": "armchair,chair"}, "03", "0"),
        ({"ids": [3], "categories": "chair"}, "3", "0"),
        ({"categories": "chair,sofa", "licenses": "open"}, "0", "01"),
        ({"licenses": "open"}, "024", "012"),
        ({"licenses": "open,CC-BY-NC-4.0"}, "0124", "012"),
        ({"ids": [0, 1, 4], "categories": "chair"}, "0", "01"),
        ({"limit": 1}, "1", "1"),  # of all six the smallest sha256(id)
        ({"ids": [0, 2, 4], "limit": 1}, "0", "0"),
        ({"licenses": "open", "limit": 1}, "0", "012"),
    ],
)
def test_only_the_metadata_of_what_is_asked_for_is_read(
    hub: HubServer, tmp_path: Path, change: dict, kept: str, read: str
) -> None:
    if "ids" in change:
        (tmp_path / "ids.txt").write_text("\n".join(map(uid, change["ids"])))
        change = change | {"ids": str(tmp_path / "ids.txt")}
    assert "".join(sorted(name.removeprefix("uid") for name in listed(tmp_path, **change))) == kept
    assert [name for name in sorted(hub.asked()) if name.startswith("metadata")] == [
        META.format(folder) for folder in read
    ]


def test_the_limit_is_that_of_every_source(hub: HubServer, tmp_path: Path) -> None:
    by_hash = sorted(map(uid, range(6)), key=records.id_hash)
    for limit in (1, 2, 5):
        assert sorted(listed(tmp_path, limit=limit)) == sorted(by_hash[:limit])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "object-paths.json.gz",
            {"a": "glbs/000-000/../../../etc/x.glb"},
            r"it has 'a' in 'glbs/000-000/../../../etc/x.glb'",
        ),
        ("object-paths.json.gz", {"a/../b": "glbs/000-000/x.glb"}, r"it has 'a/../b' in"),
        ("object-paths.json.gz", {"a": 1}, "contains something other than strings"),
        ("object-paths.json.gz", ["a"], "it is not a JSON object"),
        ("lvis-annotations.json.gz", {"chair": 1}, "not iterable"),
        (META.format(0), [1], "cannot convert"),
    ],
)
def test_annotations_that_are_not_what_they_should_be(
    hub: HubServer, tmp_path: Path, name: str, content: object, message: str
) -> None:
    hub.add_json(name, content)
    with pytest.raises(UsageError, match=f"{name} cannot be read .*{message}.*delete it"):
        listed(tmp_path)


def test_a_file_that_another_program_left_cut_off(hub: HubServer, tmp_path: Path) -> None:
    for name in ("object-paths.json.gz", META.format(1)):
        whole = hub.files[name]
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(whole[: len(whole) - 12])
        with pytest.raises(UsageError, match=f"{name} cannot be read .*: delete it, and it is downloaded again"):
            listed(tmp_path)
        (tmp_path / "cache" / name).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": "sofas"}, r"--categories: LVIS has no category sofas; it has 3, such as sofa"),
        ({"licenses": "MIT"}, r"--licenses: no object has the licence MIT; the source has CC-BY-4.0 \(2\)"),
        ({"input": "s3://bucket/x"}, "downloads need a local or shared folder"),
        ({"input": __file__}, "is not a folder"),
    ],
)
def test_what_can_only_be_a_mistake_is_refused(hub: HubServer, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preprocess(config(tmp_path, **change), run_kept)
    assert not (tmp_path / "data").exists()


def test_no_network_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(HubServer("http://127.0.0.1:9", ""), monkeypatch)
    with pytest.raises(
        UsageError,
        match=r"lvis-annotations.json.gz .* cannot be downloaded from http://127.0.0.1:9 \(download-unreachable: "
        r".*HF_ENDPOINT.*--input",
    ):
        preprocess(config(tmp_path), run_kept)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_asks_nobody_and_writes_nothing(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(config(tmp_path, dry_run=True), run_kept) is None
    assert "lvis-annotations.json.gz is missing: a run downloads it from http://127.0.0.1:" in capsys.readouterr().out
    assert hub.seen == [] and list(tmp_path.iterdir()) == []
    listed(tmp_path)
    hub.seen.clear()
    preprocess(config(tmp_path, dry_run=True, licenses="open"), run_kept)
    said = capsys.readouterr().out
    assert "3 objects of --source objaverse" in said and "3 of 6 objects are left out: licence" in said
    assert hub.seen == [] and not (tmp_path / "data").exists()


# ----------------------------------------------------------------------------------------------------------------
# dataset


def test_open_objects_become_a_dataset_and_a_second_start_asks_for_nothing(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "cap3d.csv").write_text("uid0,a tall box\nuid1,never used\n")
    settings = config(tmp_path, licenses="open", captions=str(tmp_path / "cap3d.csv"))
    hub.faults[mesh(2)] = ["500", "cut"]
    rows = run(settings)
    assert sorted(rows) == [uid(0), uid(2), uid(4)] and {row["status"] for row in rows.values()} == {"ok"}
    first = rows[uid(0)]
    assert (first["license"], first["author"], first["caption"], first["caption_source"]) == (
        "CC-BY-4.0",
        "Author 0",
        "a tall box",
        "cap3d",
    )
    assert (first["attribution_url"], first["path"], first["up_axis"]) == (
        "https://sketchfab.com/3d-models/uid0",
        mesh(0),
        "y",
    )
    assert first["content_sha256"] == hashlib.sha256(hub.files[mesh(0)]).hexdigest()
    assert mesh(1) not in hub.asked(), "what is left out is not fetched"
    before = datasets.open_dataset(settings.output).shards
    hub.seen.clear()
    run(settings)
    (tmp_path / "cache" / mesh(0)).unlink()  # it is in its shard: nobody needs it
    run(settings)
    assert datasets.open_dataset(settings.output).shards == before and hub.seen == []
    flags = vars(settings) | {"input": str(tmp_path / "cache")}
    assert replanned(flags) == ("", ""), "jobs/status.py --verify"
    (tmp_path / "cache" / mesh(2)).write_bytes(box(9.0))
    assert "1 shards to convert (1 stale: inputs changed)" in replanned(flags)[0]


def test_what_cannot_be_had_is_a_row_and_is_tried_again_when_asked(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults, hub.for_ever = {mesh(1): ["500"], mesh(3): ["flip"], mesh(4): ["head-404"]}, True
    rows = run(config(tmp_path))
    assert {name: row["status"] for name, row in rows.items()} == {
        uid(n): "failed" if n in (1, 3, 4) else "ok" for n in range(6)
    }
    assert [rows[uid(n)]["error"].split(":")[0] for n in (1, 3, 4)] == [
        "download-server",
        "download-checksum",
        "download-not-found",
    ]
    assert rows[uid(1)]["license"] == "CC-BY-NC-4.0" and rows[uid(1)]["content_sha256"] == ""
    failures = datasets.open_dataset(tmp_path / "data").failures
    assert failures == {
        "failed/download-checksum": 1,
        "failed/download-not-found": 1,
        "failed/download-server": 1,
    } and retried(failures)
    hub.faults.clear()
    hub.seen.clear()
    capsys.readouterr()
    run(config(tmp_path))
    assert hub.seen == [] and "6 objects in 3 shards are finished and skipped" in capsys.readouterr().out
    rows = run(config(tmp_path, retry_failed=True))
    assert {row["status"] for row in rows.values()} == {"ok"} and hub.asked() == {mesh(1): 1, mesh(3): 1, mesh(4): 1}


def test_downloads_can_be_dropped_but_not_what_lay_there_before(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "cache" / mesh(0)).parent.mkdir(parents=True)
    (tmp_path / "cache" / mesh(0)).write_bytes(hub.files[mesh(0)])
    run(config(tmp_path, drop_downloads=True))
    assert [path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("*.glb")] == [
        mesh(0)
    ]
    hub.seen.clear()
    run(config(tmp_path, drop_downloads=True, rehash=True))
    assert hub.seen == []


KILLED = """
import sys
from pathlib import Path
from pipelines.tracking import tracked
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.shards import map_here
tracked.tell = lambda *_: None
small = {"num_shards": 3, "resolution": 16, "num_surface": 8, "num_sharp": 8, "num_queries": 8}
preprocess(PreprocessConfig(source="objaverse", input=sys.argv[1], output=sys.argv[2], **small), map_here)
"""


@pytest.mark.slow
def test_killed_in_a_download_and_started_again_fetches_nothing_twice(hub: HubServer, tmp_path: Path) -> None:
    last = make_last(tmp_path)
    hub.faults[mesh(last)] = ["stall"]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "cache"), str(tmp_path / "data")],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "data").glob("*.json"))) < 2 or not hub.asked()[mesh(last)]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    (part,) = (tmp_path / "cache" / client.PARTS).iterdir()
    assert part.stat().st_size < len(hub.files[mesh(last)]) and not (tmp_path / "cache" / mesh(last)).exists()
    assert {row["status"] for row in run(config(tmp_path)).values()} == {"ok"}
    twice = {name: count for name, count in hub.asked().items() if count > 1}
    assert twice == {mesh(last): 2}, "only the one that was under way"


def make_last(tmp_path: Path) -> int:
    """The object that is fetched last."""
    order = sorted(range(6), key=lambda number: (records.shard_index(uid(number), 3), uid(number)))
    return order[-1]
