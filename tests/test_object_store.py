"""Datasets in a bucket: everything that works in a local folder, against a real S3 server process."""

import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from g3pt.config import TrainConfig
from g3pt.data import datasets, derived, reading, records, streaming
from g3pt.data import fetched as copied
from g3pt.data.fetched import fetched
from g3pt.data.storage import (
    Location,
    RemotePath,
    listing,
    location,
    open_parquet,
    read_many,
    remove_temporaries,
    stamp,
    write_atomic,
)
from g3pt.models.tokenizer import CVQ
from g3pt.training import exports
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import safe_on_disk
from pipelines.cluster.nodes import Nodes
from pipelines.derive import tokens
from pipelines.generate import job as generate_job
from pipelines.generate.config import GenerateConfig
from pipelines.generate.job import generate
from pipelines.generate.sample_sheet import SampleSheetFlags, sample_sheet
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import ShardTask
from pipelines.preprocess.sources import inputs_hash
from pipelines.preprocess.sources.folder import input_folder
from pipelines.status import doctor_storage
from pipelines.status.job import StatusFlags, status
from pipelines.tracking import tracked
from pipelines.tracking.client import Tracking
from pipelines.train import jobs
from pipelines.train.cvq import CVQStage
from tests.empty_store import EmptyStore
from tests.g3pt.data.test_records import ok_row
from tests.g3pt.data.test_records import write as write_rows
from tests.g3pt.tiny import tiny_tokenizer
from tests.jobs import kills
from tests.pipelines.toy_data import write_toy_dataset, write_toy_tokenizer
from tests.pipelines.toy_generator import write_toy_generator
from tests.s3_server import S3Server, s3_server

SMALL = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
names = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests; this process and its children find it by the usual environment variables."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(store: S3Server) -> str:
    """The URI of a fresh bucket."""
    return store.new_bucket(f"bucket-{next(names)}")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on each kind of storage."""
    return location(
        tmp_path / "local" if request.param == "local" else f"{request.getfixturevalue('bucket')}/a folder/ä"
    )


CARD_FILES = ("card.json", "contact_sheet.png", "contact_sheet.credits.md", "report.html")  # for local folders only


def contents(place: Location) -> dict[str, bytes]:
    """All files of a folder except notes that contain a host and a time."""
    found = sorted(name for name in listing(place) if name not in ("command.json", *CARD_FILES))
    return dict(zip(found, read_many([place / name for name in found]), strict=True))


# ------------------------------------------------------------------------------------------------------------- storage


def test_a_folder_of_a_bucket_does_what_a_local_one_does(folder: Location) -> None:
    assert not folder.exists() and listing(folder) == {} and list(read_many([])) == []
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "one.json", b"1")
    write_atomic(folder / "one.json", "zwölf".encode())
    write_atomic(folder / "two.bin", b"")
    (folder / "below").mkdir()
    write_atomic(folder / "below" / "three", b"x" * 12_000_000)  # in several parts
    assert listing(folder) == {"one.json": 6, "two.bin": 0}
    assert (folder / "one.json").read_text(encoding="utf-8") == "zwölf" and (
        folder / "below" / "three"
    ).read_bytes() == b"x" * 12_000_000
    assert list(read_many([folder / "two.bin", folder / "one.json"])) == [b"", "zwölf".encode()]
    assert (
        folder.is_dir()
        and not folder.is_file()
        and (folder / "one.json").is_file()
        and not (folder / "one.json").is_dir()
    )
    file = folder / "below" / "three.parquet"
    assert (file.name, file.stem, file.suffix, file.parent.name) == ("three.parquet", "three", ".parquet", "below")
    with pytest.raises(FileNotFoundError, match="three.parquet"):
        file.read_bytes()
    with pytest.raises(FileNotFoundError, match="three.parquet"):
        file.unlink()
    file.unlink(missing_ok=True)
    (folder / "one.json").unlink()
    remove_temporaries(folder)
    assert listing(folder) == {"two.bin": 0} and folder.exists()


def test_a_dataset_in_a_bucket_is_summed_up_and_verified(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    from g3pt.data.inspection import main

    info = write_rows(location(bucket) / "data", [ok_row(f"o{k}") for k in range(9)], num_shards=3)
    assert main([str(info.path)]) == 0 and "ok 9" in capsys.readouterr().out
    info.shard_path(1).write_bytes(info.shard_path(1).read_bytes()[:-9] + b"corrupted")
    info.shard_path(2).unlink()
    assert main([str(info.path), "--verify"]) == 1
    out = capsys.readouterr().out
    assert (
        "shard-00001.parquet  has sha256 " in out
        and "shard-00002.parquet  missing" in out
        and "remove shard-00001.json there" in out
    )


def test_a_small_file_is_one_put_and_a_folder_one_listing(store: S3Server, bucket: str) -> None:
    path, before = location(bucket) / "data" / "a.json", len(store.requests())
    write_atomic(path, b"1")
    listing(path.parent)
    put, listed = store.requests()[before:]
    assert put == f"PUT /{path.store[5:]}/data/a.json" and listed.startswith("GET ") and "list-type=2" in listed


def test_a_uri_keeps_its_options_and_comes_back_from_its_text(bucket: str) -> None:
    path = location(f"{bucket}//data/?region=us-east-1") / "a b.json"
    assert str(path) == f"{bucket}/data/a b.json?region=us-east-1" and location(str(path)) == path
    path.write_bytes(b"1")
    assert location(f"{bucket}/data/a b.json").read_bytes() == b"1"
    assert (
        location("gs://b/data").name == "data" and location("s3://b").name == "b" and isinstance(location("data"), Path)
    )


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://no-such-bucket/data", "s3://no-such-bucket/data: there is no bucket s3://no-such-bucket"),
        ("s3://me:hush@bucket/data", "a login does not belong in a path; the login is read from AWS_ACCESS_KEY_ID"),
        ("hdfs://bucket/data", "hdfs:// is not known; give a local path, s3://bucket/path or gs://bucket/path"),
        ("s3:///data", "a bucket's name is missing; give s3://bucket/path"),
        ("s3://bucket/data?nonsense=1", "Unexpected query parameter in S3 URI: 'nonsense'"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(uri: str, says: str, store: S3Server) -> None:
    for act in (
        datasets.open_dataset,
        lambda path: preprocess(PreprocessConfig(source="shapes", limit=1, output=path)),
    ):
        with pytest.raises((ValueError, UsageError)) as found:
            act(uri)
        assert says in str(found.value) and "\n" not in str(found.value) and "hush" not in str(found.value)


def test_a_login_that_is_refused_is_one_line(store: S3Server, bucket: str) -> None:
    write_rows(location(bucket) / "data", [ok_row("a")])
    store.demand_logins(True)
    try:
        for act in (
            lambda: datasets.open_dataset(f"{bucket}/data"),
            lambda: write_atomic(location(bucket) / "x", b"1"),
        ):
            with pytest.raises(
                ValueError, match=f"^{bucket}/.*: access denied; the login is read from AWS_ACCESS_KEY_ID"
            ):
                act()
    finally:
        store.demand_logins(False)


# ------------------------------------------------------------------------------------------------------------- dataset


def test_a_dataset_in_a_bucket_is_the_local_one(bucket: str, tmp_path: Path) -> None:
    rows = [ok_row(f"x{number}") | {"license": "CC0-1.0" if number % 2 else "MIT"} for number in range(40)]
    local, remote = (write_rows(place, rows, num_shards=3) for place in (tmp_path, location(bucket) / "data"))
    assert contents(local.path) == contents(remote.path)
    assert remote == dataclasses.replace(local, path=remote.path) and isinstance(remote.path, RemotePath)
    for columns in (["id", "surface", "license"], ["caption"]):
        ours, theirs = (reading.load_arrays(info, "train", columns) for info in (remote, local))
        for name in columns:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert [reading.count_objects(remote, i, "train") for i in remote.shards] == [
        reading.count_objects(local, i, "train") for i in local.shards
    ]
    shown = []
    for info in (local, remote):
        objects = streaming.training_objects(
            streaming.Reading(dataset=info, columns=("surface",), in_memory_bytes=0, group_bytes=2000)
        )
        shown.append(
            np.stack([row["surface"] for _, some in itertools.islice(objects.rows(1, 0, 5), 30) for row in some])
        )
    np.testing.assert_array_equal(*shown)
    (remote.path / "shard-00001.parquet").unlink()
    with pytest.raises(
        ValueError, match=f"^{bucket}/data/shard-00001.parquet is missing although dataset.json lists it$"
    ):
        list(reading.read_rows(remote, ["id"]))
    with pytest.raises(ValueError, match="dataset.json is missing"):
        datasets.open_dataset(f"{bucket}/other")


def test_codes_of_a_dataset_in_a_bucket_lie_beside_it(bucket: str, tmp_path: Path) -> None:
    tokenizer = write_toy_tokenizer(tmp_path / "tokenizer")
    local, remote = (write_toy_dataset(place, count=20) for place in (tmp_path / "data", location(bucket) / "data"))
    (kind,) = {tokens.encode_dataset(str(info.path), tokenizer, use_ray=False) for info in (local, remote)}
    for index in local.shards:
        assert (
            derived.derived_path(remote, kind, index).read_bytes()
            == derived.derived_path(local, kind, index).read_bytes()
        )
    derived.derived_path(remote, kind, 1).unlink()
    assert [derived.derived_is_current(remote, kind, index) for index in (0, 1, 2)] == [True, False, True]
    tokens.encode_dataset(str(remote.path), tokenizer, use_ray=False)
    assert {k: v.tolist() for k, v in tokens.load_codes(remote, kind).items()} == {
        k: v.tolist() for k, v in tokens.load_codes(local, kind).items()
    }


def test_a_tokenizer_trains_from_a_bucket_as_from_a_folder(bucket: str, tmp_path: Path) -> None:
    batches, specs = [], []
    for place in (tmp_path / "data", location(bucket) / "data"):
        info = write_toy_dataset(place, count=20)
        specs.append(
            jobs.cvq_spec(
                str(info.path), "tiny", tiny_tokenizer().config, TrainConfig(steps=2, batch_size=4, learning_rate=1e-3)
            )
        )
        batches.append(next(CVQStage(specs[-1], 0, 1).batches(0)))
    assert specs[0].name == specs[1].name and specs[1].paths["data"] == f"{bucket}/data"
    assert batches[0].keys() == batches[1].keys() and all(
        torch.equal(batches[0][name], batches[1][name]) for name in batches[0]
    )


FORKS = """
import multiprocessing, sys
from g3pt.data.reading import read_rows

def ids(path):
    return [row["id"] for row in read_rows(path, ["id"])]

before = ids(sys.argv[1])
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(before, *pool.map(ids, [sys.argv[1]] * 3))
"""


def test_a_forked_process_reads_too(bucket: str) -> None:
    """As a DataLoader worker does after its parent used the store.

    The parent is a new process, since this one may run Ray.
    """
    info = write_rows(location(bucket) / "data", [ok_row(name) for name in "abc"])
    done = subprocess.run([sys.executable, "-c", FORKS, str(info.path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == " ".join([str(list("abc"))] * 4), done.stderr[-2000:]


# -------------------------------------------------------------------------------------------------------- preprocessing


def write_shards(tasks: list[ShardTask], config: PreprocessConfig) -> Iterator[dict]:
    """Plan, write and resume rows without geometry."""
    for task in tasks:
        rows = [records.empty_row(item.id, config.record) | item.columns() | {"status": "ok"} for item in task.objects]
        hashes = {
            "config_sha256": records.config_hash(config.settings),
            "inputs_sha256": inputs_hash(task.objects),
            "num_shards": task.num_shards,
        }
        yield {
            "index": task.index,
            "sidecar": datasets.write_shard(location(config.output), task.index, rows, config.record, **hashes),
        }


def dies_after(count: int) -> Callable[[list[ShardTask], PreprocessConfig], Iterator[dict]]:
    """Run `write_shards`, which fails after this many shards."""

    def run(tasks: list[ShardTask], config: PreprocessConfig) -> Iterator[dict]:
        yield from itertools.islice(write_shards(tasks, config), count)
        raise RuntimeError("died")

    return run


@pytest.mark.slow
def test_preprocessing_resumes_in_a_bucket_and_removes_what_is_extra(
    store: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    wanted = {"source": "shapes", "num_shards": 4, **SMALL}
    target, remote = location(bucket) / "sets" / "data", {**wanted, "output": f"{bucket}/sets/data"}
    preprocess(PreprocessConfig(output=str(tmp_path / "local"), limit=12, **wanted), write_shards)
    assert preprocess(PreprocessConfig(limit=12, dry_run=True, **remote), write_shards) is None and not target.exists()
    with pytest.raises(RuntimeError, match="died") as died:
        preprocess(PreprocessConfig(limit=12, **remote), dies_after(2))
    assert safe_on_disk(died.value) == [f"2 of 4 shards are finished ({target})"]
    left = contents(target)
    assert (
        len(left) == 5
        and "dataset.json" not in left
        and json.loads(left["failure.json"])["error"] == "RuntimeError: died"
    )
    (target / "shard-00000.json").write_bytes(b"{")
    before = len(store.requests())
    preprocess(PreprocessConfig(limit=12, **remote), write_shards)
    assert contents(target) == contents(tmp_path / "local")
    sent = [
        request.rpartition("/")[2]
        for request in store.requests()[before:]
        if request.startswith("PUT") and not request.endswith("/")
    ]
    assert sent[0] == "command.json" and sent[-1] == "dataset.json" and "shard-00001.parquet" not in sent
    assert all(sent.index(f"shard-0000{i}.parquet") < sent.index(f"shard-0000{i}.json") for i in (0, 2, 3))
    preprocess(PreprocessConfig(limit=2, **remote), write_shards)
    preprocess(PreprocessConfig(output=str(tmp_path / "local"), limit=2, **wanted), write_shards)
    assert contents(target) == contents(tmp_path / "local") and len(contents(target)) < 9
    preprocess(PreprocessConfig(limit=2, **remote), dies_after(0))  # nothing to do
    assert "shards are finished and skipped" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.slow
def test_killed_and_started_again_a_bucket_holds_the_bytes_of_an_uninterrupted_run(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: EmptyStore
) -> None:
    """The command itself, on Ray, killed with SIGKILL at a random moment."""
    empty_store.lay(tmp_path / "mlflow.db")
    flags = {"source": "shapes", "limit": 30, "num_shards": 10, **SMALL}
    target = location(bucket) / "data"
    args = kills.command("preprocess", output=target, **flags)
    kills.kill_when(
        args,
        tmp_path,
        lambda: sum(name.endswith(".json") for name in listing(target)) >= 4,
        random.Random(time.time_ns()).uniform(0, 0.4),
    )
    left = listing(target)
    assert "dataset.json" not in left
    assert kills.finish(args, tmp_path) == str(target)
    assert "are finished and skipped" in kills.printed(tmp_path)[1]
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    from pipelines.preprocess.shards import map_here

    preprocess(PreprocessConfig(output=str(tmp_path / "local"), **flags), map_here)
    ours, theirs = contents(target), contents(tmp_path / "local")
    assert ours.keys() == theirs.keys() and len(ours) == 21
    for name in ours:
        if not name.startswith("shard-") or name.endswith(".parquet"):  # a sidecar holds seconds
            assert ours[name] == theirs[name], name
    client = Tracking(
        f"sqlite:///{tmp_path}/mlflow.db"
    ).client  # in the working directory: a bucket has no place for it
    (found,) = client.search_runs([client.get_experiment_by_name("g3pt/preprocess").experiment_id])
    assert found.data.tags["g3pt.path"] == str(target) and found.info.status == "FINISHED"
    assert Path(client.download_artifacts(found.info.run_id, "dataset.json")).read_bytes() == ours["dataset.json"]


@pytest.mark.parametrize(
    "address", ["", "http://127.0.0.1:9"], ids=["no bucket", "no answer"]
)  # nobody runs a service at port 9
def test_the_command_says_in_one_line_what_is_wrong_with_a_bucket(
    address: str, store: S3Server, tmp_path: Path
) -> None:
    environment = {"AWS_ENDPOINT_URL": address or store.address}
    code = kills.start(
        kills.command("preprocess", source="shapes", limit=1, output="s3://none/data"), tmp_path, **environment
    ).wait(timeout=120)
    out, err = kills.printed(tmp_path)
    assert out == ""
    if address:
        assert (
            code == 1
            and err.startswith("failed: ConnectionError: s3://none/data: the object store does not answer")
            and len(err.splitlines()) == 2
        )
    else:
        assert (code, err) == (2, "error: --output s3://none/data: there is no bucket s3://none\n")


def test_the_doctor_tries_what_the_commands_do_in_a_bucket(store: S3Server, bucket: str) -> None:
    before = len(store.requests())
    assert doctor_storage.try_bucket(f"{bucket}/out") == ""
    asked = store.requests()[before:]
    assert any(line.startswith("POST") and "uploads" in line for line in asked), "an upload in parts"
    assert sum(line.startswith(("DELETE", "POST")) and "delete" in line.lower() for line in asked) >= 1
    assert listing(location(f"{bucket}/out")) == {}
    found = doctor_storage.check_bucket(Nodes(), f"{bucket}/out")
    assert found.state == "warning" and "from here, not tried from a worker" in found.found


def test_the_doctor_names_what_a_login_may_not_do(store: S3Server, bucket: str) -> None:
    missing = doctor_storage.check_bucket(Nodes(), "s3://no-such-bucket-of-ours/out")
    assert missing.state == "failed" and "look for the bucket: " in missing.found
    store.demand_logins(True)
    try:
        refused = doctor_storage.check_bucket(Nodes(), f"{bucket}/out")
    finally:
        store.demand_logins(False)
    assert refused.state == "failed" and "put: " in refused.found and "access denied" in refused.found
    assert "list and delete" in refused.remedy


# ------------------------------------------------------------------------------------------------- models and meshes


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: status(StatusFlags(dir="s3://b/data")), "python -m g3pt.data.inspection reads a dataset"),
        (lambda: sample_sheet(SampleSheetFlags(folder="s3://b/m", output="a.png")), "copy the folder to this machine"),
        (lambda: input_folder("s3://b/meshes"), "use a local folder"),
    ],
)
def test_what_cannot_be_in_a_bucket_yet_says_what_to_do(act: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=f"^(--input )?s3://b.*: object stores are not supported yet, .*{says}"):
        act()


def upload(folder: Path, place: Location) -> None:
    """Copy the files of a local folder to a bucket."""
    for file in folder.iterdir():
        write_atomic(place / file.name, file.read_bytes())


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of fetched copies; nothing is remembered of earlier tests."""
    monkeypatch.setattr(copied, "COPIES", tmp_path / "cache")
    forget()
    return tmp_path / "cache"


def forget() -> None:
    """As another process would begin."""
    fetched.cache_clear()
    exports._remote_export.cache_clear()


def test_an_export_in_a_bucket_is_fetched_once_and_again_when_it_is_replaced(
    bucket: str, store: S3Server, tmp_path: Path, copies: Path
) -> None:
    place = location(f"{bucket}/runs/cvq-toy")
    upload(write_toy_tokenizer(tmp_path / "export"), place / "export")
    with pytest.raises(ValueError, match=f"^{bucket}/nowhere: neither a finished run nor an exported model"):
        exports.find_export(f"{bucket}/nowhere")
    model = CVQ.from_pretrained(str(place))
    local = CVQ.from_pretrained(tmp_path / "export")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), local.parameters(), strict=True))
    assert exports.export_hash(str(place)) == exports.export_hash(tmp_path / "export")
    forget()
    before = len(store.requests())
    exports.find_export(str(place))
    assert not any("model.safetensors" in line for line in store.requests()[before:] if line.startswith("GET"))
    with torch.no_grad():
        next(local.parameters()).add_(1.0)
    upload(local.save_pretrained(tmp_path / "export"), place / "export")
    forget()
    again = CVQ.from_pretrained(str(place))
    assert torch.equal(next(again.parameters()), next(local.parameters())) and len(list(copies.iterdir())) == 2


def test_an_export_that_is_replaced_while_it_is_fetched_is_not_kept(
    bucket: str, tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = location(f"{bucket}/export")
    upload(write_toy_tokenizer(tmp_path / "export"), place)

    def slow(paths: list[Location]) -> Iterator[bytes]:
        for content in read_many(paths):
            (place / "config.json").write_bytes(b"{}")  # another upload begins
            yield content

    monkeypatch.setattr(copied, "read_many", slow)
    with pytest.raises(ValueError, match="its files were replaced while they were fetched"):
        exports.find_export(str(place))
    assert list(copies.iterdir()) == []


def test_a_stamp_changes_with_the_content_within_a_second(bucket: str) -> None:
    """A bucket's times are whole seconds: a copy of an export that was replaced at once would stay."""
    place = location(f"{bucket}/weights")
    seen = []
    for content in (b"abc", b"abd", b"abc"):
        place.write_bytes(content)
        seen.append(stamp(place))
    assert seen[0] != seen[1] and seen[0] == seen[2] and seen[0][0] == 3
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        stamp(location(f"{bucket}/missing"))


def test_codes_of_a_tokenizer_in_a_bucket_are_the_local_ones(bucket: str, tmp_path: Path, copies: Path) -> None:
    tokenizer, info = write_toy_tokenizer(tmp_path / "export"), write_toy_dataset(tmp_path / "data", count=4)
    upload(tokenizer, location(f"{bucket}/tokenizer"))
    kind = tokens.encode_dataset(str(info.path), f"{bucket}/tokenizer", use_ray=False)
    assert kind == tokens.tokens_kind(tokenizer) and len(tokens.load_codes(info, kind)) > 0


def test_meshes_in_a_bucket_are_the_local_ones_and_made_once(
    bucket: str, store: S3Server, tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_job, "_picture", lambda output, ok: None)
    monkeypatch.setattr(tracked, "tell", lambda *arguments: None)
    model = write_toy_generator(tmp_path / "export")
    upload(model, location(f"{bucket}/model"))
    shared = {"text": "a chair", "num": 3, "resolution": 32, "cfg": "1"}
    generate(GenerateConfig(model=str(model), output=str(tmp_path / "out"), **shared), use_ray=False)
    config = GenerateConfig(model=f"{bucket}/model", output=f"{bucket}/meshes", **shared)
    assert generate(config, use_ray=False) == f"{bucket}/meshes"
    place = location(f"{bucket}/meshes")
    names = [f"sample-s{seed}.glb" for seed in range(3)]
    meshes = [(place / name).read_bytes() for name in names]
    assert meshes == [(tmp_path / "out" / name).read_bytes() for name in names]
    before = len(store.requests())
    generate(config, use_ray=False)
    asked = store.requests()[before:]
    assert not any(line.startswith("GET") and ".glb" in line for line in asked)
    assert [sum("/samples/" in line for line in asked), sum(".glb" in line for line in asked)] == [6, 3], (
        "a finished sample costs a HEAD and a GET of its record and a HEAD of its mesh"
    )
    (place / names[1]).write_bytes(b"torn")
    (place / "samples" / "sample-s2.json").unlink()
    generate(config, use_ray=False)
    assert [(place / name).read_bytes() for name in names] == meshes
    with open_parquet(place / "manifest.parquet") as file:
        rows = file.read().to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 and not list((tmp_path / "out").glob("s3*"))
    with pytest.raises(UsageError, match="no-such-bucket"):
        generate(dataclasses.replace(config, output="s3://no-such-bucket/meshes"), use_ray=False)
