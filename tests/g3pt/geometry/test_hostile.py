"""Hostile files through load_mesh in this process: each is refused with the reason that fits it, or is a sound mesh."""

import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from g3pt.geometry.load import load_mesh
from g3pt.geometry.reading import MeshError
from tests.g3pt.geometry.hostile_files import good_files, write_all

SECONDS = 5.0  # of the processor, for any file; most take a millisecond
MEGABYTES = 1024.0  # growth of this process over all of them


def outcome(path: Path, root: Path) -> str:
    """The reason of a refusal, or "ok" for a mesh that is sound."""
    try:
        mesh = load_mesh(path, root)
    except MeshError as error:
        assert str(error).isprintable() and str(error).startswith(f"{error.reason}: "), repr(str(error))
        return error.reason
    assert len(mesh.faces) and 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)
    assert np.isfinite(mesh.vertices[mesh.faces]).all()
    return "ok"


def test_each_hostile_file_is_refused_with_the_reason_that_fits(tmp_path: Path) -> None:
    expected = write_all(tmp_path / "in")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, slow = {}, {}
    for name in expected:
        started = time.process_time()
        found[name] = outcome(tmp_path / "in" / name, tmp_path / "in")
        slow[name] = time.process_time() - started
    assert found == expected
    assert max(slow.values()) < SECONDS, max(slow, key=slow.get)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024 < MEGABYTES


@pytest.mark.parametrize("name", [name for name in good_files() if not name.endswith(".obj")])
def test_a_file_cut_short_anywhere_never_passes_as_a_smaller_mesh(tmp_path: Path, name: str) -> None:
    """OBJ says nothing about its length. What is cut off after the last face is no loss."""
    whole, path = good_files()[name], tmp_path / name
    for length in [*range(0, len(whole), 7), len(whole.rstrip()) - 1]:
        path.write_bytes(whole[:length])
        assert outcome(path, tmp_path) != "ok" or len(load_mesh(path, tmp_path).faces) == 4, length


@pytest.mark.parametrize("name", good_files())
def test_flipped_cut_and_doubled_bytes_give_a_mesh_or_a_reason(tmp_path: Path, name: str) -> None:
    """Seeded: a failure comes again. Anything but MeshError fails the test."""
    rng, whole = random.Random(name), good_files()[name]
    outcomes = set()
    for case in range(60):
        data, at = bytearray(whole), rng.randrange(len(whole))
        if case % 3 == 0:
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif case % 3 == 1:
            del data[at : at + rng.randint(1, 60)]
        else:
            data[at:at] = data[at : at + 60] * rng.randint(1, 20)
        (tmp_path / name).write_bytes(data)
        outcomes.add(outcome(tmp_path / name, tmp_path))
    assert outcomes - {"ok"}  # it was broken indeed
