"""Real meshes and shapes in one manifest: only redistributable ones, readable by `jobs/preprocess.py --source dir`."""

import csv
from pathlib import Path

import pytest
import trimesh

from pipelines.preprocess.sources.folder import list_folder
from pipelines.release import mixed_folder


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    rows = [("a", "one/a.ply", "CC0-1.0"), ("b", "one/b.ply", "CC-BY-NC-4.0"), ("market_c", "two/c.ply", "CC0-1.0")]
    for _, path, _ in rows:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        trimesh.creation.box().export(folder / path)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "license", "author"])
        writer.writerows([*row, "somebody"] for row in rows)
    return folder


def test_only_free_and_confirmed_objects_and_shapes_are_listed(
    meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mixed"
    mixed_folder.main(["--meshes", str(meshes), "--shapes", "3", "--output", str(output)])
    assert capsys.readouterr().out.splitlines() == ["4 objects", f"result: {output}"]
    found = sorted(list_folder(output), key=lambda item: item.id)
    ids = [item.id for item in found]
    assert "a" in ids and "b" not in ids and "market_c" not in ids and sum(i.startswith("shapes/") for i in ids) == 3
    assert not (output / "two").exists(), "folders of left-out objects do not travel"


@pytest.mark.parametrize("path", ["../secret/a.ply", "/etc/a.ply", "out/a.ply"])
def test_a_path_that_leaves_the_folder_is_refused_before_anything_is_copied(
    meshes: Path, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").mkdir()
    (meshes / "out").symlink_to(tmp_path / "secret")
    (meshes / "manifest.csv").write_text(f"id,path,license\na,{path},CC0-1.0\n")
    with pytest.raises(SystemExit) as left:
        mixed_folder.main(["--meshes", str(meshes), "--shapes", "0", "--output", str(tmp_path / "mixed")])
    assert left.value.code == 2 and "is not a file or folder of" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()


def test_a_second_call_and_a_missing_manifest_end_with_one_line(
    meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--meshes", str(meshes), "--shapes", "0", "--output", str(tmp_path / "mixed")]
    mixed_folder.main(arguments)
    for bad, words in (
        (arguments, "has a manifest already"),
        (["--meshes", str(tmp_path), "--output", str(tmp_path / "x")], "missing; licences"),
    ):
        with pytest.raises(SystemExit) as left:
            mixed_folder.main(bad)
        assert left.value.code == 2 and words in capsys.readouterr().err
