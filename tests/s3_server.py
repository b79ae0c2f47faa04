"""A real S3 server for tests: moto's, a process of its own on the loopback at a free port, ended by its pid."""

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60
LOGIN = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class S3Server:
    """Its address, and the requests that it has seen."""

    address: str
    log: Path

    def environment(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {**LOGIN, "AWS_ENDPOINT_URL": self.address}

    def new_bucket(self, name: str) -> str:
        """A fresh bucket's URI."""
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT")).close()
        return f"s3://{name}"

    def requests(self) -> list[str]:
        """`PUT /bucket/key`, in the order in which they came; without the server's colours."""
        lines = re.sub(r"\x1b\[\d+m", "", self.log.read_text()).splitlines()
        return [" ".join(found.groups()) for line in lines if (found := re.search(r'"([A-Z]+) (\S+) HTTP', line))]

    def demand_logins(self, enabled: bool) -> None:
        """Refuse those whose keys it never gave out, as a real store does: that is everyone."""
        count = b"0" if enabled else b"inf"
        request = urllib.request.Request(
            f"{self.address}/moto-api/reset-auth", data=count, headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """The server, as long as the block runs; it logs in `folder`."""
    log = folder / "s3.log"
    with open(log, "wb") as file:
        child = subprocess.Popen(
            [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"], stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"moto_server did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield S3Server(found[0], log)
    finally:
        child.terminate()
        child.wait(timeout=20)
