"""`from g3pt import ...` works for each public name, and `import g3pt` alone imports nothing heavy."""

import subprocess
import sys

import pytest

import g3pt


def test_every_public_name_is_there() -> None:
    assert set(g3pt.__all__) == set(g3pt._MODULES) and set(g3pt.__all__) <= set(dir(g3pt))
    for name in g3pt.__all__:
        found = getattr(g3pt, name)
        assert found.__name__ == name and found.__module__ == g3pt._MODULES[name] and found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'fit_everything'"):
        g3pt.fit_everything  # noqa: B018


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import g3pt; dir(g3pt)", {"torch", "trimesh", "numpy", "pyarrow", "scipy"}),
        ("from g3pt import load_mesh, convert_mesh", {"torch", "trimesh", "pyarrow"}),
        ("from g3pt import fit_power_law, fit_surface", {"torch", "trimesh", "pyarrow", "scipy"}),
        ("from g3pt import G3PT", {"trimesh", "transformers", "skimage", "ray"}),
    ],
)
def test_a_name_imports_only_what_it_needs(program: str, absent: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(sorted({absent!r} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
