"""Reports of every kind of folder: whole, unfinished, damaged, hostile.

In a browser: tests/jobs/test_report_page.py.
"""

import hashlib
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g3pt.training.exports import export_hash
from pipelines.cli.errors import UsageError
from pipelines.cli.paths import file_below
from pipelines.evaluate.gallery import decode_cloud, encode_cloud, folder_of, write_gallery
from pipelines.report import dataset, meshes
from pipelines.report.html import ASSETS, link
from pipelines.report.page import write_report
from pipelines.report.plots import Series, plot
from tests.pipelines.report_folders import (
    BOX_F3,
    BOX_V3,
    make_dataset,
    make_evaluation,
    make_generation,
    make_run,
    make_study,
)
from tests.pipelines.report_numbers import check_numbers
from tests.pipelines.toy_data import write_toy_dataset

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=alert(2)> \"'&amp; \u202eright to left " + "very long " * 60
)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "dataset": make_dataset,
    "cvq run": make_run,
    "car run": lambda folder: make_run(folder, "car"),
    "generation": make_generation,
    "study": make_study,
    "cvq evaluation": lambda folder: make_evaluation(folder / "tokenizer.json"),
    "car evaluation": lambda folder: make_evaluation(folder / "generator.json", "car"),
}


def page(path: Path) -> str:
    return write_report(path).read_text(encoding="utf-8")


def shapes_in(text: str) -> list[dict[str, Any]]:
    """The objects in the viewer of a page."""
    return json.loads(re.search(r'<script type="application/json" id="objects">(.*?)</script>', text)[1])


class Tags(html.parser.HTMLParser):
    """All start tags, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_gives_one_whole_page(kind: str, tmp_path: Path) -> None:
    made = MAKERS[kind](tmp_path / "it")
    file = write_report(made)
    assert file == (made.with_suffix(".html") if made.is_file() else made / "report.html")
    text = file.read_text(encoding="utf-8")
    assert kind in text and "default-src 'none'" in text.replace("&#39;", "'")
    assert check_numbers(text, file.parent) > 3
    addresses = [value for _, attrs in Tags(text).found for name in ("src", "href") if (value := attrs.get(name))]
    assert not [a for a in addresses if not a.startswith(("#", "data:,", "data:image/png;", "https://"))], (
        "one file: nothing lies beside it"
    )
    assert [p.name for p in file.parent.iterdir() if p.name.startswith(".")] == []


def test_a_folder_of_several_tells_them_all(tmp_path: Path) -> None:
    for kind, make in MAKERS.items():
        make(tmp_path / kind.replace(" ", "-"))
    (tmp_path / "seconds.json").write_text('{"one": 2.5, "all": 2.75}')
    (tmp_path / "other.json").write_text('{"kind": "cvq"}')
    text = page(tmp_path)
    for words in (
        "Generated meshes",
        "Reconstructions",
        "Evaluation of the generator",
        "Scaling study",
        "Training the tokenizer",
        "Dataset",
        "Time",
        "A Processor",
    ):
        assert words in text, words
    assert check_numbers(text, tmp_path) > 60


def test_a_wrong_number_is_noticed(tmp_path: Path) -> None:
    """The check itself works: a page whose file changed after it was written does not pass."""
    make_evaluation(tmp_path / "tokenizer.json")
    text = page(tmp_path / "tokenizer.json")
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("0.40625", "0.5"))
    with pytest.raises(AssertionError, match="iou_volume"):
        check_numbers(text, tmp_path)


def test_an_evaluation_alone_leaves_its_neighbours_out(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "tokenizer.json")
    (tmp_path / "seconds.json").write_text('{"one": 2.5, "all": 2.75}')
    assert "seconds.json" not in page(tmp_path / "tokenizer.json")


def test_failures_are_shown_as_such(tmp_path: Path) -> None:
    text = page(make_generation(tmp_path / "gen"))
    assert "failed: empty-field: nothing inside" in text and len(shapes_in(text)) == 1
    text = page(make_evaluation(tmp_path / "cvq.json"))
    assert "no mesh: empty-field" in text and len(shapes_in(text)) == 3
    text = page(make_dataset(tmp_path / "data"))
    assert "failed/corrupt" in text


def test_a_generators_page_tells_what_was_asked_for_and_what_came(tmp_path: Path) -> None:
    text = page(make_evaluation(tmp_path / "generator.json", "car"))
    for words in (
        "Attributes of the prompt",
        "Whole objects",
        "Coverage (COV)",
        "Guidance: attributes",
        "all attributes found",
        "(found two panels)",
        "share that is met",
    ):
        assert words in text, words
    assert text.count("<svg viewBox") == 3 * (1 + 4), "three plots and their legends"
    assert text.count("share that is met") == 3, "beside the table, and (with its tooltip) in the whole protocol"
    assert "<u>four" not in text and "<i>size" not in text


def test_of_many_shards_a_few_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = write_toy_dataset(tmp_path / "data", count=60, num_shards=12)
    opened: list[str] = []
    real = dataset.pq.ParquetFile
    monkeypatch.setattr(dataset.pq, "ParquetFile", lambda path: (opened.append(path.name), real(path))[1])
    monkeypatch.setattr(dataset, "COUNTED_SHARDS", 4)
    text = page(info.path)
    assert "counted in 4 of 12 shards" in text and len(opened) <= 4 + dataset.SAMPLED_SHARDS
    assert 6 <= len(shapes_in(text)) <= dataset.SHOWN_OBJECTS
    (info.path / "shard-00000.parquet").unlink()
    with pytest.raises(UsageError, match="shard-00000.parquet is missing"):
        write_report(info.path)
    (info.path / "shard-00000.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(UsageError, match="data: "):
        write_report(info.path)


def test_half_finished_work_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    (run / "failure.json").write_text('{"error": "ValueError: loss is nan at step 80", "time": 1}')
    text = page(run)
    assert "Not finished" in text and "loss is nan at step 80" in text and "Once the run is finished" in text
    text = page(make_study(tmp_path / "study", fitted=False))
    assert "No fit yet: 1 of 4 runs" in text and "Changes to every preset" not in text
    assert "Changes to every preset: head=bits&lt;b&gt;." in page(make_study(tmp_path / "changed", set="head=bits<b>"))
    data = make_dataset(tmp_path / "data")
    (data / "dataset.json").unlink()
    (data / "command.json").write_text('{"command": "python jobs/preprocess.py --output data"}')
    text = page(data)
    assert "Not finished: 2 shards so far" in text and "python jobs/preprocess.py --output data" in text
    empty = make_run(tmp_path / "none", num_records=0, finished=False)
    assert "no record yet" in page(empty)


def test_a_run_finds_its_evaluation_or_names_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "cvq-nano-s0-12345678")
    assert "python jobs/evaluate.py --model" in page(run)
    make_evaluation(tmp_path / "other.json", export_sha256="of other weights")
    assert "python jobs/evaluate.py --model" in page(run)
    make_evaluation(tmp_path / "mine.json", export_sha256=export_hash(run))
    text = page(run)
    assert (
        "python jobs/evaluate.py" not in text
        and "Reconstructions" in text
        and "../../mine.json#/metrics/iou_volume" in text
    )
    assert check_numbers(text, run) > 10


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing", None, "no such file"),
        ("empty", {}, "no dataset, run, study"),
        ("broken", {"dataset.json": "{"}, "not readable as JSON"),
        ("ledger", {"config.json": '{"stage": "cvq", "config": {}}', "metrics.jsonl": "{]\n"}, "not a ledger"),
        ("other", {"dataset.json": '{"schema_version": 99}'}, "schema version 99"),
        (
            "manifest",
            {"manifest.parquet": "PAR1", "command.json": '{"flags": {"prompts": null}}'},
            "not readable as Parquet",
        ),
        ("config", {"config.json": "[", "metrics.jsonl": ""}, "not readable as JSON"),
        ("brackets", {"study.json": "[" * 100_000}, "not readable as JSON"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    name: str, content: dict[str, str] | None, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    for file, text in (content or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    if content == {}:
        folder.mkdir()
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_one_unreadable_part_of_several_is_a_line(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset.json").write_text("[]")
    (tmp_path / "seconds.json").write_text("{")
    (tmp_path / "old.json").write_text('{"kind": "cvq", "model": {"export_sha256": "x"}, "gallery": [{"cloud": 5}]}')
    text = page(tmp_path)
    assert "old.json: damaged, or of another version" in text and "seconds.json: not readable" in text
    assert "bad/dataset.json: not a JSON object" in text and "Training the tokenizer" in text


@pytest.mark.parametrize("kind", ["dataset", "generation", "evaluation", "failure"])
def test_hostile_text_stays_text(kind: str, tmp_path: Path) -> None:
    evil = {
        "license": HOSTILE,
        "author": HOSTILE,
        "attribution_url": "javascript:alert(3)",
        "source_url": f"https://example.org/{HOSTILE}",
    }
    folder = tmp_path / "<b>&'\" it"
    if kind == "dataset":
        made = make_dataset(folder, caption=HOSTILE, **evil)
    elif kind == "generation":
        made = make_generation(folder, text=HOSTILE, error=HOSTILE)
    elif kind == "evaluation":
        made = make_evaluation(folder / "x.json", caption=HOSTILE, **evil)
    else:
        made = make_run(folder)
        (made / "failure.json").write_text(json.dumps({"error": HOSTILE}))
    tags = Tags(page(made)).found
    scripts = [attrs.get("type") for tag, attrs in tags if tag == "script"]
    assert scripts in ([None], [None, "importmap", "application/json", "module"])  # the first is the section links'
    assert not [tag for tag, _ in tags if tag in ("iframe", "object", "b")]
    assert not [
        attrs for tag, attrs in tags if tag == "img" and not (attrs["src"] or "").startswith("data:image/png;base64,")
    ]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    links = [attrs for tag, attrs in tags if tag == "a" and not (attrs["href"] or "").startswith("#")]
    assert all((a["href"] or "").startswith(("http://", "https://")) and "noopener" in (a["rel"] or "") for a in links)


def test_files_named_by_data_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.glb").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.glb").symlink_to(tmp_path / "secret.glb")
    for name in ("../secret.glb", str(tmp_path / "secret.glb"), "link.glb", "", "a\0b", "missing.glb"):
        assert file_below(tmp_path / "in", name) is None, name
    entries = write_gallery([{"id": "../../../etc/x", "cloud": np.zeros((3, 6)), "mesh": None}], tmp_path / "g.meshes")
    assert (tmp_path / "g.meshes" / entries[0]["cloud"]).is_file() and "/" not in entries[0]["cloud"]


def test_only_web_addresses_become_links() -> None:
    found = link("https://example.org/a?b=1&c")
    assert found.startswith('<a href="https://example.org/a?b=1&amp;c"') and 'rel="noopener' in found
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://x/y",
        "https:",
        "http://[",
        " java\nscript:alert(1)",
    ):
        assert "<a" not in link(address), address


def test_a_packed_mesh_is_the_mesh() -> None:
    import base64

    packed = meshes.mesh_object(BOX_V3 + 5, BOX_F3, "model")
    steps = np.frombuffer(base64.b64decode(packed["positions"]), "<i2").reshape(-1, 3)
    points = steps / 32767 * packed["scale"] + packed["centre"]
    assert np.allclose(np.unique(points.round(3), axis=0), np.unique(BOX_V3 + 5, axis=0), atol=2e-3)
    assert len(points) == 24, "each corner of a box is three vertices, one a side, so that its edges look sharp"
    assert len(np.frombuffer(base64.b64decode(packed["indices"]), "<u2")) == 3 * len(BOX_F3)


@pytest.mark.parametrize("side", [100, 200])
def test_a_large_mesh_becomes_small_and_keeps_its_form(side: int) -> None:
    import base64

    import pyvista

    ball = pyvista.Sphere(theta_resolution=side, phi_resolution=side)
    packed = meshes.mesh_object(np.asarray(ball.points), ball.regular_faces, "model")
    corners = np.frombuffer(base64.b64decode(packed["indices"]), "<u2")
    steps = np.frombuffer(base64.b64decode(packed["positions"]), "<i2").reshape(-1, 3) / 32767 * packed["scale"]
    assert side == 100 or ball.n_cells > meshes.CLUSTERED_FACES
    assert 0.8 * meshes.MAX_FACES < len(corners) / 3 <= 1.02 * meshes.MAX_FACES
    assert np.linalg.norm(steps + packed["centre"], axis=1) == pytest.approx(0.5, abs=0.01)


def test_the_same_mesh_is_simplified_once_and_another_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    simplified: list[np.ndarray] = []
    work = meshes._simplified
    monkeypatch.setattr(meshes, "_SIMPLIFIED", {})
    monkeypatch.setattr(meshes, "REMEMBERED", 3)
    monkeypatch.setattr(meshes, "_simplified", lambda *mesh: (simplified.append(mesh[0]), work(*mesh))[1])
    vertices = BOX_V3.copy()
    first = meshes.mesh_object(vertices, BOX_F3, "data")
    assert meshes.mesh_object(BOX_V3.copy(), BOX_F3.copy(), "data") == first and len(simplified) == 1
    vertices[0] -= 1.0  # in place
    assert meshes.mesh_object(vertices, BOX_F3, "data") != first and len(simplified) == 2
    meshes.mesh_object(BOX_V3, BOX_F3[:-1], "data")
    meshes.mesh_object(BOX_V3, BOX_F3, "data", 4)
    assert len(simplified) == 4 and len(meshes._SIMPLIFIED) == 3


def test_empty_and_endless_meshes_are_refused() -> None:
    for vertices, faces in ((BOX_V3[:0], BOX_F3[:0]), (BOX_V3 * np.nan, BOX_F3)):
        with pytest.raises(ValueError, match="empty or not finite"):
            meshes.mesh_object(vertices, faces, "data")


def test_clouds_come_back_and_nothing_else_opens() -> None:
    cloud = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    data = encode_cloud(cloud)
    assert np.array_equal(decode_cloud(data), cloud)
    for wrong in (
        b"",
        data[:-1],
        data + b"x",
        data.replace(b"vertex 5", b"vertex 6"),
        data.replace(b"float x", b"double x"),
    ):
        with pytest.raises(ValueError, match="not a cloud"):
            decode_cloud(wrong)


def test_a_gallery_is_replaced_as_a_whole(tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    write_gallery(
        [{"id": str(k), "cloud": np.ones((3, 6)), "mesh": (BOX_V3, BOX_F3)} for k in range(3)], folder_of(output)
    )
    listed = write_gallery([{"id": "x", "mesh": (BOX_V3, BOX_F3)}], folder_of(output))
    assert [file.name for file in folder_of(output).iterdir()] == [listed[0]["mesh"]]
    assert write_gallery([], folder_of(output)) == [] and not folder_of(output).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_plot_leaves_out_what_it_cannot_draw() -> None:
    assert plot("t", [Series(label="a", x=[1.0], y=[float("nan")])], x_label="x", y_label="y") == ""
    drawn = plot("t", [Series(label="<a>", x=[1, 2, 3], y=[1.0, float("inf"), 2.0])], x_label="x", y_label="y")
    assert "nan" not in drawn and "inf" not in drawn and "&lt;a&gt;" in drawn
    flat = plot("t", [Series(label="a", x=[1, 1], y=[0.0, 0.0])], x_label="x", y_label="y", log_x=True)
    assert "<circle" in flat or "<polyline" in flat


def test_vendored_files_are_as_published() -> None:
    listed = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", (ASSETS / "README.md").read_text(), re.MULTILINE)
    assert {name for _, name in listed} == {"three.core.min.js", "three.module.min.js", "LICENSE.three"}
    for digest, name in listed:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


def test_the_licence_of_three_is_in_the_page(tmp_path: Path) -> None:
    text = page(make_generation(tmp_path / "gen"))
    assert "Permission is hereby granted, free of charge" in text and "three.js authors" in text
    assert "three.js" not in page(make_run(tmp_path / "run")), "a page without shapes carries no viewer"
