"""Downloads one file of the hub's dataset allenai/objaverse to a folder: resumed, retried, verified, and limited in
time.

How: a `Download` works in its own thread. It asks the hub for a file's address, length and hash (huggingface_hub's HEAD
request, which also honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE), reads it into a hidden part file, compares length
and hash, and renames it. A file under its final name is complete and is never requested again.

Ours: not `hf_hub_download` (2.4): it verifies no hash when it reads over HTTP, has no limit on the total time, and
      after a failed HEAD waits up to 60 s for each of six more. Not the `objaverse` package (0.1.7): one urlretrieve
      without time limit, retry or hash, from a fixed address. The folder has the layout of that package, so its
      downloads are used. Nobody waits for a download beyond its limit, not even if a server sends a byte every few
      seconds: the thread is abandoned.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from pipelines.cluster.turns import Turn

REPOSITORY = "allenai/objaverse"
PARTS = ".incoming"  # below the folder: incomplete files
STALL_S = 15.0  # longest wait for a byte or an answer
MAX_TRIES = 5
FIRST_WAIT_S = 1.0  # before the second try; doubled each time
GRACE_S = 1.0  # extra time in which a download can report its own timeout
LEFTOVER_S = 86400.0  # a part file this old belongs to no active download
AHEAD = 4  # downloads in progress beside the one waited for
SAY_NO = {401: "refused", 403: "refused", 404: "not-found", 410: "not-found"}
TOO_OFTEN, TOO_OFTEN_S = (
    429,
    30.0,
)  # the HTTP status, and the wait if the server names none: the hub counts requests in windows of minutes
BUSY = (408, 425, TOO_OFTEN)
Item = TypeVar("Item")
Started = TypeVar("Started")


class DownloadError(Exception):
    """A failed download; the message is the row's error, `download-<reason>: text`.

    `again`: another try may help, after `wait_s` if set.
    """

    def __init__(self, reason: str, text: str, *, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(f"download-{reason}: {text}")
        self.again, self.wait_s = again, wait_s


def at_once() -> float:
    """The turn of a download that nothing limits."""
    return 0.0


class Download:
    """The download of a file of the hub to `folder / name`. A file that exists already is used as it is.

    `turn` returns the seconds to wait before the download begins; they do not count against the limit.
    """

    def __init__(self, folder: Path, name: str, limit_s: float, turn: Turn = at_once) -> None:
        self.file, self.limit_s, self.turn = folder / name, limit_s, turn
        self.deadline = float("inf")
        self.is_new = not self.file.is_file()
        self._begun, self._done = threading.Event(), Future[None]()
        if self.is_new:
            threading.Thread(
                target=self._work, args=(folder, name), daemon=True
            ).start()  # a stalled download must not delay the exit
        else:
            self._begun.set()
            self._done.set_result(None)

    def result(self) -> Path:
        """Wait for the file and return its path. DownloadError if it does not arrive within the limit."""
        self._begun.wait()
        try:
            self._done.result(timeout=max(0.0, self.deadline - time.monotonic()) + GRACE_S)
        except TimeoutError:
            raise _too_slow(self.limit_s) from None
        return self.file

    def _work(self, folder: Path, name: str) -> None:
        try:
            try:
                time.sleep(self.turn())
            finally:
                self.deadline = time.monotonic() + self.limit_s
                self._begun.set()
            self._done.set_result(fetch(folder, name, self.limit_s))
        except BaseException as error:  # raised in the waiting thread
            self._done.set_exception(error)


def ahead(items: Iterable[Item], start: Callable[[Item], Started], most: int = AHEAD) -> Iterator[tuple[Item, Started]]:
    """Each item with `start(item)`, in order; up to `most` items are started before they are requested."""
    window: deque[tuple[Item, Started]] = deque()
    for item in items:
        window.append((item, start(item)))
        if len(window) > most:
            yield window.popleft()
    yield from window


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT or huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def default_folder() -> str:
    """The folder of downloads if the user names none."""
    from huggingface_hub import constants

    return os.path.join(constants.HF_HOME, "objaverse")


def remove_leftovers(folder: Path) -> None:
    """Delete part files of killed downloads."""
    with contextlib.suppress(OSError):
        for part in (folder / PARTS).iterdir():
            if part.stat().st_mtime < time.time() - LEFTOVER_S:
                part.unlink()


# ----------------------------------------------------------------------------------------------------------- one file


def fetch(folder: Path, name: str, limit_s: float) -> None:
    """Download a file of the dataset to `folder / name`, complete or not at all. DownloadError if that fails."""
    deadline = time.monotonic() + limit_s
    part = folder / PARTS / f"{name.replace('/', '-')}.{os.getpid()}-{threading.get_ident()}"
    try:
        _until_whole(name, part, deadline, limit_s)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, folder / name)
    except OSError as error:  # a disk error: network errors are handled in `_try`
        raise DownloadError("disk", f"{error.strerror or error} ({folder})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _until_whole(name: str, part: Path, deadline: float, limit_s: float) -> None:
    tries = 0
    while True:
        if time.monotonic() >= deadline:
            raise _too_slow(limit_s)
        try:
            return _try(name, part, deadline)
        except DownloadError as error:
            tries += error.wait_s is None  # a server that names a time to retry is not broken
            if not error.again or tries >= MAX_TRIES:
                raise
            pause = error.wait_s if error.wait_s is not None else FIRST_WAIT_S * 2 ** (tries - 1)
        except TimeoutError:
            raise _too_slow(limit_s) from None
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))


def _try(name: str, part: Path, deadline: float) -> None:
    """One try. Its part file stays for the next try, unless its content is wrong. TimeoutError past the deadline."""
    import httpx2  # huggingface_hub's HTTP library
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    url = hf_hub_url(REPOSITORY, name, repo_type="dataset", endpoint=endpoint())
    try:
        found = get_hf_file_metadata(url, timeout=_patience(deadline), endpoint=endpoint())
        _read(found.location, part, found.size, deadline)
    except OfflineModeIsEnabled as error:
        raise DownloadError("offline", f"{name}: HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        raise _refusal(error.response, name) from error
    except FileMetadataError as error:
        raise DownloadError("server", f"{name}: {error}") from error
    except httpx2.TimeoutException as error:
        raise DownloadError("stalled", f"{name}: no byte within {STALL_S:g} s", again=True) from error
    except httpx2.ConnectError as error:
        raise DownloadError("unreachable", f"{endpoint()}: {error}", again=True) from error
    except httpx2.HTTPError as error:  # the connection broke, or the answer is not HTTP
        raise DownloadError("broken", f"{name}: {error}", again=True) from error
    _check(part, name, found.size, found.etag)


def _read(address: str, part: Path, size: int | None, deadline: float) -> None:
    """Read the rest of a file from its address."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    there = part.stat().st_size if part.exists() else 0
    if there and size is not None and there >= size:  # nothing is left to read
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    if address.startswith(f"{endpoint()}/"):  # the token is for the hub, not for the storage it redirects to
        headers |= build_hf_headers()
    with get_session().stream("GET", address, headers=headers, timeout=_patience(deadline)) as answer:
        if answer.status_code >= 400:
            part.unlink(missing_ok=True)  # 416 for example: the part is not the beginning of this file
            raise _refusal(answer, part.name)
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab" if answer.status_code == 206 else "wb") as file:
            for piece in answer.iter_raw():
                file.write(piece)
                if time.monotonic() >= deadline:
                    raise TimeoutError


def _patience(deadline: float) -> float:
    """Seconds to wait for an answer or a piece."""
    return max(0.1, min(STALL_S, deadline - time.monotonic()))


def _refusal(answer: Any, name: str) -> DownloadError:
    """The error for an answer with status 400 or higher."""
    status = answer.status_code
    if status in BUSY or status >= 500:
        return DownloadError("server", f"{name}: HTTP {status}", again=True, wait_s=_told_to_wait(answer))
    return DownloadError(SAY_NO.get(status, "server"), f"{name}: HTTP {status}", again=status == 416)


def _told_to_wait(answer: Any) -> float | None:
    """Seconds that the server asks to wait, or a default if it only says that there were too many requests; None for
    other errors.
    """
    from huggingface_hub.utils import parse_ratelimit_headers

    wait, limit = answer.headers.get("Retry-After", ""), parse_ratelimit_headers(answer.headers)
    if wait.isdecimal():
        return float(wait)
    if answer.status_code != TOO_OFTEN:
        return None
    return limit.reset_in_seconds + 1.0 if limit else TOO_OFTEN_S


def _check(part: Path, name: str, size: int | None, etag: str | None) -> None:
    """Compare length and hash with those of the hub: sha256 for large files, git's hash for others."""
    there = part.stat().st_size
    if size is not None and there < size:
        raise DownloadError("truncated", f"{name}: {there} of {size} bytes", again=True)
    digest = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % there)}.get(len(etag or ""))
    if digest is None or (size is not None and there > size):
        part.unlink()
        raise DownloadError(
            "checksum", f"{name}: {there} bytes, of {size} with the hash {etag}", again=digest is not None
        )
    with open(part, "rb") as file:
        hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest() != etag:
        part.unlink()
        raise DownloadError("checksum", f"{name}: the hash is {digest.hexdigest()}, not {etag}", again=True)


def _too_slow(limit_s: float) -> DownloadError:
    return DownloadError("timeout", f"over {limit_s:g} s")
