"""`make test` runs two lanes of pytests at once: every test is in one of them, and a failure in any is a failure."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.all_tiers import LANES, TIERS, exit_code, run

RUNNER = Path(__file__).with_name("all_tiers.py")


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((1, 0), 1), ((0, 2), 2), ((5, 0), 0), ((0, 5), 0), ((5, 5), 5), ((-9, 5), -9), ((1, 2), 1)],
)
def test_a_failure_in_any_tier_is_a_failure(codes: tuple[int, int], code: int) -> None:
    assert exit_code(codes) == code


def test_a_test_is_in_one_tier_unless_it_is_soak() -> None:
    assert sorted(name for lane in LANES for name in lane) == sorted(TIERS)
    for slow, soak, jobs in itertools.product((False, True), repeat=3):
        selected = [eval(marks, {"slow": slow, "soak": soak, "jobs": jobs}) for marks in TIERS.values()]
        assert selected.count(True) == (0 if soak else 1)


def test_a_test_of_commands_is_known_by_its_folder(request: pytest.FixtureRequest) -> None:
    found = request.session.items
    assert [
        item.nodeid for item in found if (item.get_closest_marker("jobs") is None) == (item.path.parent.name == "jobs")
    ] == []


def test_commands_run_at_once_and_all_that_they_say_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first can only end once the second has begun."""
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'there')!r}).exists(): time.sleep(0.05)\nprint('first said'); raise SystemExit(3)"
    begins = f"import pathlib; pathlib.Path({str(tmp_path / 'there')!r}).touch(); print('second said')"
    third = [sys.executable, "-c", "print('third said')"]
    assert run([[[sys.executable, "-c", waits], third], [[sys.executable, "-c", begins]]]) == [[3, 0], [0]]
    said = capfd.readouterr().out
    assert "second said" in said and -1 < said.index("first said") < said.index("third said")


def test_ended_by_a_signal_it_leaves_no_tier_at_work(tmp_path: Path) -> None:
    """Each tier takes down what it started."""
    (tmp_path / "test_waits.py").write_text(
        "import pathlib, time, pytest\n"
        "def wait(name):\n    pathlib.Path(name).touch()\n"
        "    try:\n        time.sleep(300)\n    finally:\n        pathlib.Path(name).unlink()\n"
        "def test_fast(): wait('fast')\n"
        "@pytest.mark.slow\n@pytest.mark.jobs\ndef test_slow(): wait('slow')\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    soak\n    jobs\n")
    process = subprocess.Popen(
        [sys.executable, RUNNER, "-q", "-p", "no:cacheprovider"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / name).exists() for name in ("fast", "slow")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert not (tmp_path / "fast").exists() and not (tmp_path / "slow").exists()
