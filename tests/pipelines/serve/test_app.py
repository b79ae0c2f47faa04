import base64
import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from g3pt.geometry.files import write_mesh
from g3pt.models.car import G3PT
from g3pt.models.sampling import SampleConfig
from g3pt.shapes import make_shape
from pipelines.cli.errors import UsageError
from pipelines.serve.config import ServeConfig, is_loopback
from pipelines.serve.engine import BATCH, Busy, Engine, Request
from pipelines.serve.job import bound, serve
from tests import pages
from tests.pipelines.quick_conversion import convert_here
from tests.pipelines.serve.server import Client, serving
from tests.pipelines.toy_generator import write_toy_generator


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> G3PT:
    return G3PT.from_pretrained(str(write_toy_generator(tmp_path_factory.mktemp("model") / "export"))).eval()


@pytest.fixture(scope="module")
def client(model: G3PT) -> Iterator[Client]:
    with serving(model) as found:
        yield found


@pytest.fixture
def quick_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    convert_here(monkeypatch)


def png() -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGBA", (20, 20), (200, 30, 30, 255)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def mug(folder: Path, ending: str = "obj") -> bytes:
    shape = make_shape("shapes/mug-00007")
    write_mesh(folder / f"mug.{ending}", shape.vertices, shape.faces)
    return (folder / f"mug.{ending}").read_bytes()


def loaded(content: bytes, kind: str) -> Any:
    return trimesh.load(io.BytesIO(content), file_type=kind, force="mesh", process=False)


def test_a_text_becomes_the_meshes_of_generate_in_four_formats(client: Client, model: G3PT) -> None:
    state = client.finished(text="a chair", num=2, seed=3, resolution=32, previews=True)
    plain = model.generate("a chair", num=2, seed=3, resolution=32)
    assert state["state"] == "done" and [mesh["seed"] for mesh in state["meshes"]] == [3, 4]
    for mesh, wanted in zip(state["meshes"], plain, strict=True):
        assert mesh["faces"] == len(wanted.faces) > 0 and set(mesh["files"]) == {"glb", "obj", "ply", "stl"}
        assert mesh["watertight"] == trimesh.Trimesh(wanted.vertices, wanted.faces).is_watertight
        answers = {kind: client.call(address) for kind, address in mesh["files"].items()}
        for kind, answer in answers.items():
            assert len(loaded(answer.body, kind).faces) == len(wanted.faces)
            assert f'filename="g3pt-{mesh["seed"]}.{kind}"' in answer.headers["content-disposition"]
        np.testing.assert_array_equal(loaded(answers["ply"].body, "ply").vertices, wanted.vertices)
    assert {preview["scales"] for preview in state["previews"]} <= {1, 2, 3}
    for preview in state["previews"]:
        assert len(loaded(client.call(preview["file"]).body, "glb").faces) > 0


def test_one_call_gives_one_mesh(client: Client, model: G3PT) -> None:
    answer = client.call("/api/mesh?format=stl", {"text": "a chair", "num": 5, "seed": 1, "resolution": 32})
    (wanted,) = model.generate("a chair", seed=1, resolution=32)
    assert answer.status == 200 and len(loaded(answer.body, "stl").faces) == len(wanted.faces)


def test_a_picture_and_guidance_reach_the_model(client: Client, model: G3PT, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = G3PT.sample_encoded
    monkeypatch.setattr(
        G3PT, "sample_encoded", lambda self, *values, **named: seen.append(values) or original(self, *values, **named)
    )
    state = client.finished(image=png(), text="a chair", cfg_text=3, cfg_image=1.5, resolution=32)
    assert state["state"] == "done", state
    (settings,) = seen[0][3]
    assert (settings.cfg_text, settings.cfg_image) == (3, 1.5) and (seen[0][1] != model.car.null_image).any()


def test_an_upload_is_varied(client: Client, model: G3PT, tmp_path: Path, quick_conversion: None) -> None:
    content = mug(tmp_path)
    found = client.call("/api/sources?format=obj", content)
    assert found.status == 200 and found.json["scales"] == 4
    codes = client.service.uploads.codes(found.json["source"])
    state = client.finished(source=found.json["source"], keep_scales=4, resolution=32)
    vertices, _ = model.decode_mesh(codes, 32)
    ply = client.call(state["meshes"][0]["files"]["ply"]).body
    np.testing.assert_array_equal(loaded(ply, "ply").vertices, vertices)
    assert client.call("/api/sources?format=.OBJ", content).json == found.json
    for body, said in (
        ({"source": "0" * 64, "keep_scales": 1}, "this source is unknown"),
        ({"source": found.json["source"], "keep_scales": 5}, "keep_scales must be 0 to 4"),
        ({"text": "a mug", "keep_scales": 1}, "keep_scales needs a source"),
    ):
        answer = client.call("/api/requests", body)
        assert answer.status == 400 and said in answer.json["error"]


@pytest.mark.parametrize(
    ("format", "content", "status", "said"),
    [
        ("exe", b"MZ", 400, "a mesh is one of .glb"),
        ("../obj", b"v 0 0 0", 400, "a mesh is one of .glb"),
        ("obj", b"", 400, "empty"),
        ("glb", b"glTF" + bytes(40), 400, ""),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", 400, "zero-extent"),
        ("gltf", json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "/etc/passwd", "byteLength": 9}],
                             "bufferViews": [{"buffer": 0, "byteLength": 9}], "scene": 0, "scenes": [{"nodes": [0]}],
                             "nodes": [{"mesh": 0}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
                             "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
                             }).encode(), 400, ""),
        ("obj", bytes(2 << 20), 413, "a request has at most 1 MB"),
    ],
)  # fmt: skip
def test_hostile_uploads_get_one_sentence(
    client: Client, quick_conversion: None, format: str, content: bytes, status: int, said: str
) -> None:
    answer = client.call(f"/api/sources?format={format}", content)
    assert answer.status == status and said in answer.json["error"] and "\n" not in answer.json["error"]
    assert "root:" not in answer.body.decode() and "/tmp" not in answer.json["error"]


def test_an_upload_without_a_length_is_cut_off(client: Client) -> None:
    parts = (bytes(1 << 16) for _ in range(32))
    answer = client.call("/api/sources?format=obj", parts, {"transfer-encoding": "chunked"})
    assert answer.status == 413 and answer.json["error"] == "a request has at most 1 MB"
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    with contextlib.suppress(urllib.error.URLError, ConnectionError):  # the server closes the connection
        assert client.call("/api/sources?format=obj", endless(), {"transfer-encoding": "chunked"}).status == 413
    assert sent < 64 << 20


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "give a text, a picture or a mesh"),
        ({"text": " \n"}, 400, "give a text, a picture or a mesh"),
        ({"text": "a " * 400}, 400, "does not fit"),
        ({"text": "a chair", "num": BATCH + 1}, 422, "num: "),
        ({"text": "a chair", "seed": -1}, 422, "seed: "),
        ({"text": "a chair", "cfg_text": -1}, 422, "cfg_text: "),
        ({"text": "a chair", "resolution": 4096}, 422, "resolution: "),
        ({"text": "a chair", "model": "/etc"}, 422, "model: "),
        ({"image": "no base64"}, 400, "image is not base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, 400, "image is none of PNG"),
    ],
)
def test_what_cannot_be_made_is_refused(client: Client, body: dict[str, Any], status: int, said: str) -> None:
    answer = client.call("/api/requests", body)
    assert answer.status == status and said in answer.json["error"] and "\n" not in answer.json["error"]


@pytest.mark.parametrize(
    "path",
    ["/assets/../app.py", "/assets/..%2fapp.py", "/assets/page.html", "/assets//etc/passwd", "/api/requests/none",
     "/api/requests/none/meshes/0.glb", "/docs", "/redoc"],
)  # fmt: skip
def test_no_other_file_is_served(client: Client, path: str) -> None:
    answer = client.call(path)
    assert answer.status == 404 and "error" in answer.json


def test_other_sites_and_foreign_names_are_refused(client: Client) -> None:
    wanted = {"text": "a chair", "resolution": 32}
    assert client.call("/api/requests", wanted, {"origin": "http://evil.example"}).status == 403
    assert client.call("/", headers={"host": "evil.example"}).status == 403
    own = f"http://127.0.0.1:{client.port}"
    assert client.call("/api/requests", wanted, {"origin": own}).status == 202


def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    page = client.call("/")
    assert "script-src 'self'" in page.headers["content-security-policy"] and b"http://" not in page.body
    assert b"https://" not in page.body
    for part in page.body.decode().split('"'):
        if part.startswith("/"):
            answer = client.call(part)
            assert answer.status == 200 and answer.body, part
            assert b"//cdn" not in answer.body


def test_the_schema_has_every_call(client: Client) -> None:
    paths = client.call("/api/openapi.json").json["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        ("/api/model", "get"), ("/api/sources", "post"), ("/api/requests", "post"),
        ("/api/requests/{request_id}", "get"), ("/api/requests/{request_id}/meshes/{number}.{kind}", "get"),
        ("/api/requests/{request_id}/previews/{scales}.glb", "get"), ("/api/mesh", "post"),
    }  # fmt: skip


def test_the_guide_s_calls_can_be_typed(
    client: Client, tmp_path: Path, quick_conversion: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    mug(tmp_path)
    blocks = pages.blocks(pages.REPOSITORY / "docs" / "guide" / "page.md")
    (line,) = [line for block in blocks for line in block.lines if line.startswith("curl ")]
    if shutil.which("curl"):
        subprocess.run(shlex.split(line.replace(":7860", f":{client.port}")), check=True, timeout=120)
        assert len(trimesh.load(tmp_path / "table.glb", force="mesh").faces) > 0
    (code,) = ["\n".join(block.lines) for block in blocks if block.language == "python"]
    exec(compile(code.replace(":7860", f":{client.port}"), "page.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert sorted(file.name for file in tmp_path.glob("*.stl")) == ["mug-0.stl", "mug-1.stl"]


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError, match=r"pip install 'g3pt\[page\]'"):
        serve(ServeConfig())


def test_a_port_in_use_is_named(client: Client) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {client.port}"):
        bound("127.0.0.1", client.port)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost:7860", True),
        ("127.0.0.5", True),
        ("[::1]:80", True),
        ("0.0.0.0", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_loopback_names(host: str, own: bool) -> None:
    assert is_loopback(host) is own


# -------------------------------------------------------------------------------------------------------------- engine


def wish(seed: int, *, num: int = 1, text: str = "a chair", previews: bool = False) -> Request:
    return Request(
        text=text,
        pixels=None,
        seeds=range(seed, seed + num),
        settings=SampleConfig(),
        known=torch.zeros(0, dtype=torch.int64),
        resolution=32,
        with_previews=previews,
    )


def test_waiting_requests_are_drawn_together_and_have_the_meshes_they_have_alone(
    model: G3PT, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = G3PT.sample_encoded
    monkeypatch.setattr(
        G3PT,
        "sample_encoded",
        lambda self, *values, **named: sizes.append(len(values[2])) or original(self, *values, **named),
    )

    def made(requests: list[Request], together: bool) -> list[Request]:
        engine = Engine(model, len(requests))
        if not together:
            engine.start()
        for request in requests:
            engine.put(request)
            if not together:
                request.finished.wait()
        if together:
            engine.start()
        for request in requests:
            request.finished.wait()
        engine.stop()
        return requests

    def wishes() -> list[Request]:
        return [wish(0), wish(5, num=3, text="a boat"), wish(9, previews=True), wish(2, num=4), wish(7)]

    together = made(wishes(), together=True)
    assert sizes == [5, 5], "a request's samples are not divided"
    sizes.clear()
    alone = made(wishes(), together=False)
    assert sizes == [1, 3, 1, 4, 1]
    for one, other in zip(together, alone, strict=True):
        assert one.state == other.state == "done" and len(one.shapes) == len(one.seeds)
        for shape, same in zip(one.shapes, other.shapes, strict=True):
            np.testing.assert_array_equal(shape.vertices, same.vertices)
    assert set(together[2].previews) == {1, 2, 3} and not together[0].previews


def test_a_full_queue_refuses_and_a_failure_ends_only_its_batch(
    model: G3PT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(model, 2)
    first, second = wish(0), wish(1)
    assert (engine.put(first), engine.put(second)) == (0, 1)
    assert engine.position(second) == 1
    with pytest.raises(Busy, match="2 requests are waiting"):
        engine.put(wish(2))
    with monkeypatch.context() as broken:
        broken.setattr(G3PT, "sample_encoded", lambda *values, **named: 1 / 0)
        engine.start()
        assert first.finished.wait(60) and second.finished.wait(60)
    assert first.state == "failed" and first.error == "the model failed on this request"
    assert "ZeroDivisionError" in capsys.readouterr().err
    third = wish(2)
    engine.put(third)
    assert third.finished.wait(60) and third.state == "done"
    engine.stop()


def test_old_requests_are_forgotten(model: G3PT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serve.engine.KEPT", 2)
    engine = Engine(model, 10)
    done = [wish(number) for number in range(4)]
    for request in done:
        engine.put(request)
        request.finished.set()
    engine.put(wish(9))
    assert [engine.get(request.id) is not None for request in done] == [False, False, True, True]
