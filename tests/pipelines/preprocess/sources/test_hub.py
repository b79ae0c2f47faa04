"""One file from a hub that fails in every way: it arrives whole or not at all, within its time limit,
with a clear error.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster.turns import Turns
from pipelines.preprocess.sources import hub as client
from pipelines.preprocess.sources.hub import Download, DownloadError, ahead
from tests.hub_server import HubServer, hub_server, use

NAME = "glbs/000-000/abc.glb"
CONTENT = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    use(server, monkeypatch)
    server.files, server.faults, server.for_ever, server.seen = {NAME: CONTENT}, {}, False, []
    return server


def test_a_file_comes_once(hub: HubServer, tmp_path: Path) -> None:
    first = Download(tmp_path, NAME, 20)
    assert first.result().read_bytes() == CONTENT and first.is_new
    assert [(method, name) for method, name, _ in hub.seen] == [("HEAD", NAME), ("GET", NAME)]
    again = Download(tmp_path, NAME, 20)
    assert again.result() == tmp_path / NAME and not again.is_new and len(hub.seen) == 2


@pytest.mark.parametrize(
    ("faults", "reads"),
    [
        (["500", "503"], 3),
        (["stall"], 2),
        (["cut"], 2),
        (["flip"], 2),
        (["429"] * 7, 8),
        (["head-503"], 1),
        (["cut", "500", "flip", "stall"], 5),
    ],
)
def test_a_fault_that_passes_costs_another_try(hub: HubServer, tmp_path: Path, faults: list[str], reads: int) -> None:
    hub.faults[NAME] = faults
    assert Download(tmp_path, NAME, 20).result().read_bytes() == CONTENT
    assert hub.asked()[NAME] == reads and list((tmp_path / client.PARTS).iterdir()) == []


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (429, {"RateLimit": '"resolvers";r=0;t=55'}, 56.0),  # the hub's own
        (429, {}, client.TOO_OFTEN_S),
        (503, {"Retry-After": "2"}, 2.0),
        (503, {"Retry-After": "Fri, 27 Nov 2026 10:00:00 GMT"}, None),
        (500, {}, None),
    ],
)
def test_a_server_may_say_when_to_come_back(status: int, headers: dict[str, str], wait_s: float | None) -> None:
    import httpx2

    found = client._refusal(httpx2.Response(status, headers=headers), NAME)
    assert found.again and found.wait_s == wait_s


def test_waiting_as_told_ends_with_the_limit(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_told_to_wait", lambda answer: 3600.0)
    hub.faults[NAME] = ["429"]
    with pytest.raises(DownloadError, match="download-timeout"):
        Download(tmp_path, NAME, 0.3).result()


def test_two_workers_begin_downloads_at_the_rate_of_the_job(hub: HubServer, tmp_path: Path) -> None:
    """Waiting for a turn takes nothing from the time of a download."""
    turns, limit_s, rate = Turns(20.0), 60.0, 20.0
    names = [f"glbs/000-000/{number}.glb" for number in range(10)]
    hub.files |= dict.fromkeys(names, CONTENT)
    begun = time.monotonic()
    workers = [
        ahead(names[k::2], lambda name, k=k: Download(tmp_path / str(k), name, limit_s, turns.take)) for k in (0, 1)
    ]
    found = [download for pair in zip(*workers, strict=True) for _, download in pair]
    assert all(download.result().is_file() for download in found) and len(hub.asked("HEAD")) == 10
    assert time.monotonic() - begun >= (len(names) - 1) / rate
    assert max(download.deadline for download in found) - begun >= limit_s + (len(names) - 1) / rate


def test_a_broken_connection_goes_on_where_it_broke(hub: HubServer, tmp_path: Path) -> None:
    hub.faults[NAME] = ["cut", "cut"]
    Download(tmp_path, NAME, 20).result()
    ranges = [headers.get("Range") for method, _, headers in hub.seen if method == "GET"]
    assert ranges == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) * 3 // 4}-"]


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("500", r"download-server: .*: HTTP 500", 5),
        ("stall", r"download-stalled: glbs/000-000/abc.glb: no byte within 0.25 s", 5),
        ("flip", r"download-checksum: .*the hash is [0-9a-f]{64}, not [0-9a-f]{64}", 5),
        ("cut", r"download-broken: .*", 5),
        ("403", r"download-refused: .*: HTTP 403", 1),
        ("head-404", r"download-not-found: .*: HTTP 404", 0),
        ("head-500", r"download-server: .*: HTTP 500", 0),
    ],
)
def test_a_fault_that_stays_is_named_and_leaves_nothing(
    hub: HubServer, tmp_path: Path, fault: str, reason: str, tries: int
) -> None:
    hub.faults[NAME], hub.for_ever = [fault], True
    with pytest.raises(DownloadError, match=reason):
        Download(tmp_path, NAME, 20).result()
    assert hub.asked()[NAME] == tries and [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("fault", ["drip", "head-drip"])
def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_up(
    hub: HubServer, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single wait is long, so only the limit on the whole download ends it; for headers, only
    that nobody waits any more.
    """
    monkeypatch.setattr(client, "GRACE_S", 0.1)
    hub.faults[NAME], hub.for_ever = [fault], True
    with pytest.raises(DownloadError, match=r"download-timeout: over 0.4 s"):
        Download(tmp_path, NAME, 0.4).result()


def test_a_hub_that_is_not_there_and_one_that_may_not_be_asked(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    use(HubServer("http://127.0.0.1:9", ""), monkeypatch)
    with pytest.raises(DownloadError, match=r"download-unreachable: http://127.0.0.1:9: "):
        Download(tmp_path, NAME, 20).result()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"download-offline: .*HF_HUB_OFFLINE is set"):
        Download(tmp_path, NAME, 20).result()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_the_disk_s_fault(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "glbs").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="download-disk: "):
        Download(tmp_path, NAME, 20).result()


def test_a_login_goes_to_the_hub_and_not_to_its_storage(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Download(tmp_path, NAME, 20).result()
    assert [(method, "authorization" in {key.lower() for key in headers}) for method, _, headers in hub.seen] == [
        ("HEAD", True),
        ("GET", False),
    ]


def test_parts_of_killed_downloads_go_after_a_day(tmp_path: Path) -> None:
    (tmp_path / client.PARTS).mkdir()
    for name, age_s in (("old", 2 * client.LEFTOVER_S), ("young", 60)):
        (tmp_path / client.PARTS / name).touch()
        os.utime(tmp_path / client.PARTS / name, (time.time() - age_s,) * 2)
    client.remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / client.PARTS).iterdir()] == ["young"]
    client.remove_leftovers(tmp_path / "nowhere")


def test_what_is_ahead_is_started_and_no_more() -> None:
    started: list[int] = []
    found = ahead(range(10), lambda number: started.append(number) or -number, most=3)
    assert next(found) == (0, 0) and started == [0, 1, 2, 3]
    assert [number for number, _ in found] == list(range(1, 10)) and len(started) == 10
