"""Planning: which objects are chosen and read again; a plan does not depend on order and needs little memory."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from g3pt.data import datasets, records
from g3pt.data.datasets import list_shards
from g3pt.data.inspection import Inspection
from g3pt.data.tally import Tally
from pipelines.cli.errors import UsageError
from pipelines.preprocess.config import PreprocessConfig, named
from pipelines.preprocess.plan import Plan, make_plan
from pipelines.preprocess.plan_store import PlanStore
from pipelines.preprocess.sources import Listing, SourceObject, content, inputs_hash
from pipelines.preprocess.sources.captions import Captions
from pipelines.preprocess.sources.fetch import fetched
from pipelines.runs.settings import changes

SMALL = {"resolution": 16, "num_surface": 8, "num_sharp": 8, "num_queries": 8}
OLD = time.time() - 3600


def config(tmp_path: Path, **change: object) -> PreprocessConfig:
    return PreprocessConfig(
        **{"source": "dir", "input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "num_shards": 3, **SMALL}
        | change
    )


def write_mesh(file: Path, apex: int = 1, when: float = OLD) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 {apex} 0\n3 0 1 2\n")
    os.utime(file, (when, when))


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    for number in range(8):
        write_mesh(tmp_path / "in" / f"m{number}.off")
    return tmp_path / "in"


def plan(settings: PreprocessConfig) -> Plan:
    return make_plan(settings, Listing(settings))


def make(settings: PreprocessConfig) -> Plan:
    """Write the stale shards as the stage does, without converting."""
    todo = plan(settings)
    for task in todo.tasks:
        found = list(fetched(task.objects, settings))
        rows = [
            records.empty_row(one.item.id, settings.record) | one.item.columns() | {"status": "ok"} for one in found
        ]
        sidecar = datasets.write_shard(
            Path(settings.output), task.index, rows, settings.record,
            config_sha256=records.config_hash(settings.settings), num_shards=task.num_shards,
            inputs_sha256=inputs_hash([one.item for one in found]), files={one.item.id: one.stamps for one in found},
        )  # fmt: skip
        todo.current.add(task.index, sidecar)
    return todo


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []
    whole = content._inside_file
    monkeypatch.setattr(content, "_inside_file", lambda root, path: names.append(path) or whole(root, path))
    return names


# ---------------------------------------------------------------------------------------------------------- what is
# read


def test_a_plan_reads_no_file_of_new_shards_and_none_again_whose_stamp_holds(
    tmp_path: Path, meshes: Path, read: list[str]
) -> None:
    assert len(plan(config(tmp_path)).tasks) == 3 and read == []
    make(config(tmp_path))
    assert sorted(read) == sorted(file.name for file in meshes.iterdir())
    read.clear()
    again = plan(config(tmp_path))
    assert not again.tasks and again.current.rows == 8 and read == []
    assert plan(config(tmp_path, rehash=True)).tasks.num_objects == 0 and len(read) == 8


def test_a_touched_file_is_read_and_only_a_changed_one_is_stale(tmp_path: Path, meshes: Path, read: list[str]) -> None:
    make(config(tmp_path))
    read.clear()
    os.utime(meshes / "m1.off", (OLD + 1, OLD + 1))
    assert not plan(config(tmp_path)).tasks and read == ["m1.off"]
    write_mesh(meshes / "m1.off", apex=2, when=OLD + 2)
    assert plan(config(tmp_path)).tasks.reasons == {records.shard_index("m1.off", 3): "stale: inputs changed"}


def test_a_file_that_changed_a_moment_ago_gets_no_stamp(tmp_path: Path, meshes: Path, read: list[str]) -> None:
    """Another change within the resolution of the file system's clock would not change its time."""
    now = time.time()
    write_mesh(meshes / "m1.off", when=now)
    make(config(tmp_path))
    write_mesh(meshes / "m1.off", apex=2, when=now)
    assert plan(config(tmp_path)).tasks.reasons == {records.shard_index("m1.off", 3): "stale: inputs changed"}


def test_the_buffers_of_a_gltf_have_stamps_too_and_so_have_missing_ones(tmp_path: Path, read: list[str]) -> None:
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    (folder / "x.gltf").write_text(json.dumps({"buffers": [{"uri": "a%20b.bin"}, {"uri": "gone.bin"}]}))
    (folder / "a b.bin").write_bytes(b"12")
    for file in folder.iterdir():
        os.utime(file, (OLD, OLD))
    make(config(tmp_path))
    read.clear()
    assert not plan(config(tmp_path)).tasks and read == []
    os.utime(folder / "a b.bin", (OLD + 1, OLD + 1))
    assert not plan(config(tmp_path)).tasks and sorted(read) == ["sub/a b.bin", "sub/gone.bin", "sub/x.gltf"]
    (folder / "gone.bin").write_bytes(b"3")
    assert len(plan(config(tmp_path)).tasks) == 1


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.off")
    assert content.read_content(tmp_path, "pipe.off") == content.Content()


# --------------------------------------------------------------------------------------------------------- what is
# chosen


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        "path,id,name,tags,category,license,caption",
        'a.off,a,Chair,"old; wooden ;",chair,MIT,from here',
        "b.off,b,,,chair,CC-BY-NC-4.0,",
        "c.off,c,,,table,CC0-1.0,",
        "d.off,d,,,,,",
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "in" / "manifest.csv"


@pytest.mark.parametrize(
    ("change", "kept", "said"),
    [
        ({}, "abcd", None),
        ({"licenses": "open"}, "ac", "2 of 4 objects are left out: licence CC-BY-NC-4.0 1, licence none 1"),
        ({"licenses": "open, CC-BY-NC-4.0"}, "abc", "1 of 4 objects are left out: licence none 1"),
        (
            {"categories": "chair", "licenses": "MIT"},
            "a",
            "3 of 4 objects are left out: category 2, licence CC-BY-NC-4.0 1",
        ),
        ({"ids": "ids.txt"}, "bd", "1 of 3 ids of --ids are not in the source"),
    ],
)
def test_ids_categories_and_licences_choose(
    tmp_path: Path, manifest: Path, change: dict, kept: str, said: str | None
) -> None:
    (tmp_path / "ids.txt").write_text("d\n\n b \nx\n")
    settings = config(tmp_path, **change | ({"ids": str(tmp_path / "ids.txt")} if "ids" in change else {}))
    listing = Listing(settings)
    assert "".join(sorted(item.id for item in listing)) == kept
    assert listing.lines() == ([said] if said else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"licenses": "mit"},
            r"--licenses: no object has the licence mit; the source has MIT \(1\), CC-BY-NC-4.0 \(1\), CC0-1.0 \(1\), "
            r"none \(1\)",
        ),
        (
            {"categories": "sofa,chair"},
            r"--categories: no object has the category sofa; the source has chair \(2\), table \(1\), none \(1\)",
        ),
        (
            {"categories": "table", "licenses": "MIT"},
            r"--licenses: no object has the licence MIT; the source has CC0-1.0 \(1\)",
        ),
        ({"ids": "none.txt"}, "none.txt: No such file"),
        ({"ids": "empty.txt"}, "empty.txt contains no id; write one per line"),
        ({"ids": "other.txt"}, "none of its 1 ids is in the source"),
        ({"captions": "none.csv"}, "none.csv: No such file"),
        (
            {"captions": "other.txt"},
            "other.txt contains no row `id,caption`; 1 of its rows .* the first is line 1: it has 1 columns",
        ),
    ],
)
def test_a_selection_that_can_only_be_a_mistake_is_refused(
    tmp_path: Path, manifest: Path, change: dict, message: str
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "other.txt").write_text("zzz\n")
    change = {name: str(tmp_path / value) if name in ("ids", "captions") else value for name, value in change.items()}
    with pytest.raises(UsageError, match=message):
        plan(config(tmp_path, **change))


def test_names_tags_and_captions_reach_the_row(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "cap3d.csv").write_text(
        'b,"a chair, green, seen ""from behind"""\nz,unused\nno pair\n,empty id\nb2,two,commas\nc,\n\xa0d,a thing\n',
        encoding="utf-8",
    )
    listing = Listing(config(tmp_path, captions=str(tmp_path / "cap3d.csv")))
    found = {item.id: item.columns() for item in listing}
    assert (found["a"]["name"], found["a"]["tags"], found["a"]["caption"], found["a"]["caption_source"]) == (
        "Chair",
        ["old", "wooden"],
        "from here",
        "manifest",
    )
    assert (found["b"]["caption"], found["b"]["caption_source"]) == ('a chair, green, seen "from behind"', "cap3d")
    assert (found["c"]["caption"], found["d"]["caption"]) == ("", "a thing")
    assert listing.lines() == [
        "captions of cap3d.csv for 2 of 4 objects; 4 of its rows are not `id,caption` and were left out, "
        "the first is line 3: it has 1 columns"
    ]


@pytest.mark.parametrize(
    ("text", "kept", "said"),
    [
        ('a,"a tall chair\nb,"a table, round"\n', {"b": "a table, round"}, "line 1: a quote is not closed"),
        ('a,one\nb,"two\nc,three\n', {"a": "one", "c": "three"}, "line 2: a quote is not closed"),
        ('a,one\nb,"two "inches" wide"\n', {"a": "one"}, "line 2: ',' expected after '\"'"),
        ('a,a 5" pipe\n', {"a": 'a 5" pipe'}, ""),
        ('a,one\rb,"two, three"\rc,"four', {"a": "one", "b": "two, three"}, "line 3: a quote is not closed"),
        ("a,one\n\ufeffb,two\n", {"a": "one", "b": "two"}, ""),
        ("a,one\nb,t\0wo\n", {"a": "one"}, "line 2: it is not UTF-8 text"),
    ],
)
def test_a_bad_caption_costs_its_own_row_and_is_named(tmp_path: Path, text: str, kept: dict, said: str) -> None:
    (tmp_path / "cap.csv").write_text(text, encoding="utf-8", newline="")
    captions = Captions(tmp_path / "cap.csv")
    assert {name: found for name in "abc" if (found := captions.of(name))} == kept
    assert captions.line(3).partition("the first is ")[2] == said
    assert captions.bad_rows == bool(said)


def test_a_manifest_may_have_short_and_empty_lines(tmp_path: Path, manifest: Path) -> None:
    manifest.write_text('\ufeffpath,id,name\n\na.off\n"b,1.off",b,"two\nlines",\n,c\n', encoding="utf-8")
    found = Listing(config(tmp_path))._source()
    assert [(item.id, item.path, item.name) for item in (next(found), next(found))] == [
        ("a.off", "a.off", ""),
        ("b", "b,1.off", "two\nlines"),
    ]
    with pytest.raises(UsageError, match="manifest.csv line 6 has an empty path"):
        next(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,caption\na.off,"a tall chair\nb.off,a table\n', r"a quote is not closed \(in the row of line 2\)"),
        ('path,caption\na.off,x\nb.off,"tall\nc.off,"red, round"\n', r"',' expected .* \(in the row of line 3\)"),
        ("path,id,path\na.off,a,b.off\n", "has the column 'path' more than once"),
        ("path,caption\na.off,a tall, red chair\n", "line 2 has 3 values for 2 columns; quote values"),
    ],
)
def test_a_manifest_whose_values_would_be_others_is_refused(
    tmp_path: Path, manifest: Path, text: str, message: str
) -> None:
    manifest.write_text(text)
    with pytest.raises(UsageError, match=message):
        list(Listing(config(tmp_path)))


def test_another_caption_makes_its_shard_stale(tmp_path: Path, manifest: Path) -> None:
    make(config(tmp_path))
    (tmp_path / "cap.csv").write_text("b,a chair\n")
    assert plan(config(tmp_path, captions=str(tmp_path / "cap.csv"))).tasks.reasons == {
        records.shard_index("b", 3): "stale: inputs changed"
    }


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        (lambda rows: rows[::-1], ""),  # the order of rows is nothing
        (lambda rows: [row.replace("CC-BY-NC-4.0", "MIT") for row in rows], "b"),
        (lambda rows: [row.replace("from here", "from there") for row in rows], "a"),
        (lambda rows: [row.replace("table", "desk") for row in rows], "c"),
        (lambda rows: [*rows[:3], rows[3].replace("d.off", "other.off")], "d"),
        (lambda rows: [rows[0], *rows[2:]], "b"),
        (lambda rows: [*rows, "e.off,e,,,,,"], "e"),
        (lambda rows: [row.replace("c.off,c,", "c.off,c2,") for row in rows], ("c", "c2")),
    ],
)
def test_exactly_the_shards_of_changed_manifest_rows_are_touched(
    tmp_path: Path, manifest: Path, change: Callable[[list[str]], list[str]], touched: str | tuple[str, ...]
) -> None:
    settings = config(tmp_path, num_shards=1000)  # each object has a shard of its own
    make(settings)
    head, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([head, *change(rows)]) + "\n")
    found = plan(settings)
    assert {*found.tasks.reasons, *found.extra} == {records.shard_index(name, 1000) for name in touched}


# --------------------------------------------------------------------------------------------------------------- the
# plan


def test_tasks_are_the_same_in_any_order_and_cover_every_object(tmp_path: Path) -> None:
    objects = [SourceObject(id=f"o{number}", source="dir", tags=("x", "y")) for number in range(200)]
    settings = config(tmp_path, num_shards=None)
    one, other = make_plan(settings, objects), make_plan(settings, objects[::-1])
    assert list(one.tasks) == list(other.tasks) and len(one.tasks) == 13 and one.tasks[-1] == list(one.tasks)[-1]
    for task in one.tasks:
        assert task == type(task).from_json(task.to_json())
        assert [item.id for item in task.objects] == sorted(
            item.id for item in objects if records.shard_index(item.id, 13) == task.index
        )


def test_an_id_that_comes_twice_is_refused_even_where_the_limit_leaves_it_out(tmp_path: Path) -> None:
    objects = [SourceObject(id=name, source="dir") for name in ["a", "b", "b", "c", "c", "d"]]
    for limit in (None, 1):
        with pytest.raises(UsageError, match="2 ids appear more than once, the first is 'b'"):
            make_plan(config(tmp_path, limit=limit), objects)


def test_a_full_disk_under_the_plan_names_the_way_out() -> None:
    objects = [SourceObject(id=f"o{number}", source="dir", name="x" * 400) for number in range(100)]
    for rows_first in (0, 100):  # while objects are taken in, while they are sorted
        store = PlanStore()
        store.add(objects[:rows_first])
        store._db.execute("PRAGMA max_page_count = 20")
        with pytest.raises(OSError, match="no room for the plan's temporary file; set SQLITE_TMPDIR"):
            store.add(objects[rows_first:])
            store.group(2, "here")


def test_the_number_of_shards_stays_as_it_was(tmp_path: Path, meshes: Path) -> None:
    make(config(tmp_path, num_shards=5))
    again = plan(config(tmp_path, num_shards=None))
    assert (again.num_shards, len(again.tasks), again.extra) == (5, 0, [])
    other = plan(config(tmp_path, num_shards=2))
    assert set(other.tasks.reasons.values()) <= {"stale: inputs changed", "new"} and len(other.tasks) == 2
    assert other.extra == sorted(again.current.shards.keys() - {0, 1})


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no sidecar", "extra"])
def test_the_remedy_that_an_inspection_names_redoes_the_shard(tmp_path: Path, meshes: Path, damage: str) -> None:
    """After the files that --verify names are removed, the next start makes exactly these shards again."""
    done = make(settings := config(tmp_path))
    datasets.write_dataset(Path(settings.output), settings.record, settings.settings, done.num_shards, done.current)
    index = min(done.current.shards)
    parquet = Path(settings.output) / f"{records.shard_name(index)}.parquet"
    data = parquet.read_bytes()
    if damage in ("flip", "cut"):
        parquet.write_bytes(data[:-1] + (b"X" if damage == "flip" else b""))
    elif damage == "extra":
        parquet.with_name("shard-00007.parquet").write_bytes(data)
    else:
        (parquet if damage == "missing" else parquet.with_suffix(".json")).unlink()
    looked = Inspection(settings.output, verify=True)
    assert list(looked.run())[-1] == len(done.current.shards) and looked.faults
    for fault in looked.faults:
        if fault.remedy_removes:
            (Path(settings.output) / fault.remedy_removes).unlink()
    after = plan(settings)
    assert (list(after.tasks.indices), after.extra) == (([], [7]) if damage == "extra" else ([index], []))


def test_shards_are_listed_by_what_lies_there(tmp_path: Path) -> None:
    assert list_shards(tmp_path / "none") == {}
    for name in (
        "shard-00001.json",
        "shard-00001.parquet",
        "shard-00002.parquet",
        "shard-x.json",
        ".shard-00003.json.1.tmp",
        "shard-00004.json.bak",
        "dataset.json",
    ):
        (tmp_path / name).write_text("12")
    assert {index: dataclasses.astuple(found) for index, found in list_shards(tmp_path).items()} == {
        1: (True, 2),
        2: (False, 2),
    }


def test_the_fingerprint_is_that_of_all_pairs_at_once() -> None:
    sidecars = {
        index: {
            "sha256": "s",
            "rows": 2,
            "counts": {"ok": 2},
            "failures": {},
            "splits": {"train": 2},
            "content": {f'é{index}"': "1", f"a{index}": ""},
        }
        for index in (3, 1, 2)
    }
    tally = Tally(sidecars)
    pairs = sorted(pair for sidecar in sidecars.values() for pair in sidecar["content"].items())
    assert tally.fingerprint("c") == records.config_hash({"objects": pairs, "config": "c"})
    assert (tally.rows, tally.counts, list(tally.shards)) == (6, {"ok": 6}, [3, 1, 2])
    assert Tally().fingerprint("c") == records.config_hash({"objects": [], "config": "c"})


def test_near_noise_in_voxels_is_that_of_the_resolution_and_leaves_the_default_s_hash() -> None:
    plain = PreprocessConfig(source="shapes", output="out", resolution=128)
    voxels = dataclasses.replace(plain, near_voxels="1,.5,10")
    assert voxels.convert.near_sigmas == (0.5 / 64, 1 / 64, 10 / 64)
    assert dataclasses.replace(voxels, resolution=64).convert.near_sigmas == (0.5 / 32, 1 / 32, 10 / 32)
    assert plain.convert.near_sigmas == (0.001, 0.005, 0.02)
    assert records.config_hash(plain.settings) != records.config_hash(voxels.settings)
    changed = changes(named(plain.settings), named(voxels.settings))
    assert changed == ["the near points' noise (--near-voxels) 0.001,0.005,0.02, not 0.0078125,0.015625,0.15625"]


@pytest.mark.parametrize("text", ["", "0", "-1,2", "many", "nan", "200"])
def test_near_noise_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--near-voxels must be positive numbers such as 0.5,1,3"):
        PreprocessConfig(source="shapes", output="out", resolution=128, near_voxels=text)
