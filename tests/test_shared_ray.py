"""The Ray that tests share lives no longer than the tests that use it, and those follow one another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cluster import session

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_shared_ray_ends_before_a_file_that_does_not_use_it(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours,) = (
        plugin
        for plugin in pytestconfig.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == str(REPOSITORY / "tests" / "conftest.py")
    )
    ended: list[str] = []
    config: Any = SimpleNamespace(stash=pytest.Stash())

    def item(file: str, *marks: str, fixture: str = "") -> Any:
        return SimpleNamespace(
            path=REPOSITORY / file, fixturenames=[fixture], config=config, get_closest_marker=lambda name: name in marks
        )

    plain, command = item("tests/a/test_a.py"), item("tests/jobs/test_job.py", "slow")
    first, second = (item(f"tests/{name}/test_ray.py", "slow", fixture="ray_cluster") for name in ("a", "jobs"))
    by_hand = item("tests/a/test_a.py", "soak", fixture="ray_of_commands")
    items = [plain, first, by_hand, second, command]
    ours.pytest_collection_modifyitems(config, items)
    assert items == [command, first, second, plain, by_hand]
    for number, (one, following) in enumerate(zip(items, [*items[1:], None], strict=True)):
        monkeypatch.setattr(session, "disconnect", lambda number=number: ended.append(number))
        ours.pytest_runtest_teardown(one, following)
    assert ended == [2, 4], "after the second file with Ray, and in the end"
