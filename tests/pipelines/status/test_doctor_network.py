"""`jobs/doctor.py --objaverse` and `--encoders`: what is as expected, and each way it may differ, against stand-ins."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.status import doctor_network as network
from tests.g3pt.models import test_encoders
from tests.hub_server import HubServer, hub_server, use
from tests.toy_objaverse import META, annotation, box, lay, mesh, uid

pretrained = test_encoders.pretrained  # small CLIP and DINOv2, saved by the fixture


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    use(server, monkeypatch)
    server.files, server.faults, server.for_ever, server.seen = {}, {}, False, []
    lay(server)
    return server


@pytest.fixture
def without_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meshes are read in this process: a child starts in seconds."""
    from pipelines.preprocess.sandbox import Result

    monkeypatch.setattr(
        network.Sandbox, "call", lambda _, function, given: Result(status="ok", table=network.faces(**given))
    )


def test_two_objects_and_the_lists_are_compared(hub: HubServer, without_child: None, tmp_path: Path) -> None:
    lists, *meshes = network.check_objaverse(str(tmp_path))
    assert lists.state == "ok", lists
    assert "6 objects, 3 LVIS categories with 3 objects, 2 annotations" in lists.found
    assert [one.state for one in meshes] == ["ok", "ok"]
    assert all("12 triangles (its annotation says 12 faces)" in one.found for one in meshes)
    asked = hub.asked()
    assert sum(asked[mesh(number)] for number in range(6)) == 2 and sum(asked[META.format(n)] for n in range(3)) == 1


def test_the_mesh_is_read_in_a_child(hub: HubServer, tmp_path: Path) -> None:
    for number in range(6):
        hub.files[mesh(number)] = b"glTF no mesh"
    _, *meshes = network.check_objaverse(str(tmp_path))
    assert [one.state for one in meshes] == ["warning", "warning"]
    assert all("cannot be read" in one.found and "would skip it" in one.remedy for one in meshes)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a licence word": ({"license": "by-nd-4"}, "warning", "licence word 'by-nd-4' of 2 is unknown"),
    "a field": ({"viewerUrl": None}, "failed", "2 annotations have no viewerUrl"),
    "tags": ({"tags": ["red"]}, "failed", "2 annotations have no tags[].name"),
    "an author": ({"user": {"id": 7}}, "failed", "2 annotations have no user.displayName"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_differs_is_said(what: str, hub: HubServer, without_child: None, tmp_path: Path) -> None:
    change, state, words = WRONG[what]
    for folder in range(3):
        hub.add_json(META.format(folder), {uid(n): annotation(n, "by") | change for n in (folder, folder + 3)})
    lists = network.check_objaverse(str(tmp_path))[0]
    assert lists.state == state and words in lists.found and lists.remedy


def test_other_paths_other_lists_and_no_network_are_one_line(
    hub: HubServer, without_child: None, tmp_path: Path
) -> None:
    hub.add_json("object-paths.json.gz", {uid(0): mesh(0), uid(3): mesh(3), "odd": "glbs/1.glb"})
    lists = network.check_objaverse(str(tmp_path / "paths"))[0]
    assert (
        lists.state == "warning"
        and "1 paths are not glbs/000-000/ID.glb; 1 objects of LVIS have no path" in lists.found
    )
    hub.add_json("lvis-annotations.json.gz", ["chair"])
    (found,) = network.check_objaverse(str(tmp_path / "lists"))
    assert (
        found.state == "failed" and "lvis-annotations.json.gz is not a list of objects for each category" in found.found
    )
    hub.files["object-paths.json.gz"] = b"<html>"
    (found,) = network.check_objaverse(str(tmp_path / "html"))
    assert found.state == "failed" and "cannot be read" in found.found
    del hub.files["object-paths.json.gz"]
    (found,) = network.check_objaverse(str(tmp_path / "none"))
    assert found.state == "failed" and "404" in found.found and "HF_ENDPOINT" in found.remedy


def test_the_package_of_objaverse_reads_the_same(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The authors' own reader, pointed at the stand-in, and ours give the same objects, categories and fields."""
    import urllib.request

    import objaverse

    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.sources.objaverse import Objaverse
    from tests.hub_server import PREFIX

    fetch = urllib.request.urlretrieve
    real = "https://huggingface.co" + PREFIX
    monkeypatch.setattr(
        urllib.request, "urlretrieve", lambda url, path: fetch(url.replace(real, f"{hub.storage}/"), path)
    )
    monkeypatch.setattr(objaverse, "_VERSIONED_PATH", str(tmp_path / "theirs"))
    config = PreprocessConfig(source="objaverse", input=str(tmp_path / "ours"), output=str(tmp_path / "data"))
    source = Objaverse(config, None)
    ours = {item.id: item for item in source}

    about, categories = objaverse.load_annotations(list(ours)), objaverse.load_lvis_annotations()
    assert sorted(objaverse.load_uids()) == sorted(ours)
    assert {
        name: sorted(one for one, item in ours.items() if name in source.categories_of(item)) for name in categories
    } == {name: sorted(uids) for name, uids in categories.items()}
    assert len(about) == 5
    for one, item in ours.items():
        told = about.get(one, {})
        assert item.author == told.get("user", {}).get("displayName", "")
        assert item.tags == tuple(tag["name"] for tag in told.get("tags", []))
        assert item.attribution_url == told.get("viewerUrl", f"https://sketchfab.com/3d-models/{one}")
    local = objaverse.load_objects([uid(0), uid(4)])
    assert {one: Path(path).read_bytes() for one, path in local.items()} == {uid(n): box(1.0 + n / 4) for n in (0, 4)}
    assert {one: Path(path).relative_to(tmp_path / "theirs").as_posix() for one, path in local.items()} == {
        one: ours[one].path for one in local
    }, "our folder of downloads has their layout"


def test_encoders_are_compared_with_the_first_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    value = [0.5]
    monkeypatch.setattr(network, "FEATURES", {"text": lambda name: ([value[0]] * 8 + [2.0], "abc", "768")})
    names = {"text": "openai/clip-vit-large-patch14"}
    (first,) = network.check_encoders(str(tmp_path), names)
    assert first.state == "ok" and "at abc: 768 features, norm 2.0000; written to" in first.found
    (again,) = network.check_encoders(str(tmp_path), names)
    assert again.state == "ok" and "; as in " in again.found
    value[0] = 0.6
    (other,) = network.check_encoders(str(tmp_path), names)
    assert other.state == "failed" and "other features than in" in other.found
    assert json.loads((tmp_path / "encoder_features.json").read_text())[names["text"]]["features"][0] == 0.5


def test_encoders_are_loaded_and_one_that_cannot_be_had_is_one_line(pretrained: Path, tmp_path: Path) -> None:
    names = {"text": str(pretrained / "clip"), "image": str(pretrained / "dino")}
    found = network.check_encoders(str(tmp_path), names)
    assert [one.state for one in found] == ["ok", "ok"]
    assert "24 features" in found[0].found and "257 x 24 features" in found[1].found
    (missing,) = network.check_encoders(str(tmp_path), {"text": str(tmp_path / "none")})
    assert missing.state == "failed" and missing.remedy and "\n" not in missing.found and "remedy" not in missing.found
