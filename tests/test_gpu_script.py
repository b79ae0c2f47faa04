"""benchmarks/gpu.sh: each of its commands is understood where there are torch, numpy, pyarrow and safetensors alone; a
row that fails or takes too long leaves the others.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.test_layering import HEAVY

# One row of each benchmark; the others differ by their sizes.
KINDS = ("car-0.1B-compiled", "cvq-small-compiled", "codes", "attention", "sampling")
BLOCKED = f"""
import runpy, sys

class Finder:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {HEAVY!r}:
            return next(filter(None, (one.find_spec(name, path, target) for one in self.finders)), None)

sys.meta_path[:] = [Finder(list(sys.meta_path))]
for sys.argv in COMMANDS:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_its_commands_are_understood_with_torch_and_little_else(tmp_path: Path, repository: Path) -> None:
    rows = {row.name: row for row in gpu.ROWS}
    assert {row.words[0] for row in gpu.ROWS} == {rows[name].words[0] for name in KINDS}
    commands = [gpu.command(rows[name], "cpu", True, tmp_path / name)[1:] for name in KINDS]
    program = BLOCKED.replace("COMMANDS", repr(commands))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, cwd=repository)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: json.loads((tmp_path / name).read_text())["rows"][0] for name in KINDS}
    assert found["codes"]["device"] == [1.0] * 4 and found["codes"]["bf16"][0] == 1.0
    assert found["car-0.1B-compiled"]["compiled"] == found["cvq-small-compiled"]["compiled"] == "aot_eager"
    assert all(found[name]["kernels"] > 100 for name in KINDS[:2])
    ways = found["attention"]["ways"]
    assert ways["levels"]["difference"] == pytest.approx(ways["dense"]["difference"], abs=1e-2)


def test_a_row_that_fails_or_takes_too_long_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    (tmp_path / "good.py").write_text(
        "import json, sys; open(sys.argv[-1], 'w').write(json.dumps({'rows': [{'kernels': 7}], 'hardware': {}}))"
    )
    (tmp_path / "bad.py").write_text("raise SystemExit('out of memory')")
    (tmp_path / "slow.py").write_text("import time; time.sleep(600)")
    names = ("bad", "good", "slow", "late")
    rows = [gpu.Row(name=name, seconds=0, words=(f"{name}.py",)) for name in names]
    table = tmp_path / "gpu.json"
    gpu.fill(rows, 4 / 60, "cpu", True, table)
    found = json.loads(table.read_text())
    bad, good, slow = found["rows"]
    assert bad["failed"] == "1" and bad["said"] == "out of memory"
    assert good["rows"] == [{"kernels": 7}]
    assert "the time was up" in slow["failed"]
    assert found["not_reached"] == ["late"]
    assert gpu.fill([gpu.Row(name="long", seconds=600, words=())], 1 / 60, "cpu", False, table) == []
    assert json.loads(table.read_text())["not_reached"] == ["long"], "also where nothing fits"
