"""`--cpu N`: the N tests and files that take most CPU seconds, summed over test processes, and all of them together.

Wall seconds depend on what else a machine does, CPU seconds far less. Counted are a test process and the processes that
it started and waited for, with theirs; not what outlives its parent, such as workers of a Ray that was killed.
"""

import resource
from collections import Counter
from collections.abc import Generator

import pytest

LAST = pytest.StashKey[float]()  # CPU seconds at the last report of this test process


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", type=int, default=0, metavar="N", help="show the N tests and files with most CPU seconds")


def used() -> float:
    """CPU seconds of this process and of the processes that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[LAST] = 0.0  # imports and collection count for the first test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give the report of a set-up, call or teardown its `cpu_s`; pytest-xdist sends it to the main process."""
    report = yield
    now = used()
    report.cpu_s, item.config.stash[LAST] = now - item.config.stash[LAST], now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.getoption("--cpu")
    if not count:
        return
    tests, files = Counter[str](), Counter[str]()
    for report in {id(report): report for found in terminalreporter.stats.values() for report in found}.values():
        if hasattr(report, "cpu_s"):
            tests[report.nodeid] += report.cpu_s
            files[report.nodeid.partition("::")[0]] += report.cpu_s
    terminalreporter.section(f"{sum(files.values()):.0f} CPU seconds of tests")
    for name, seconds in (*files.most_common(count), *tests.most_common(count)):
        terminalreporter.write_line(f"{seconds:7.1f}  {name}")
