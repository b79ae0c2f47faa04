"""The flags of `jobs/serve.py`, checked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.cli.flags import OnDevice
from pipelines.generate.config import RELEASED


@dataclass(frozen=True, kw_only=True)
class ServeConfig(OnDevice):
    """Serve a page and an HTTP API that turn prompts, pictures and meshes into meshes."""

    model: str | None = None
    """run or export of a generator; default weights/g3pt-nano-car"""
    host: str = "127.0.0.1"
    """address to listen on; others than this machine's own are open to the network, without a login"""
    port: int = 7860
    """port to listen on; 0 takes a free one"""
    max_waiting: int = 16
    """requests that may wait; more are refused"""
    max_upload_mb: int = 32
    """largest request, with its mesh or picture"""

    def __post_init__(self) -> None:
        if self.model is None:
            object.__setattr__(self, "model", str(RELEASED))
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port must be 0 to 65535, got {self.port}")
        if self.max_waiting < 1:
            raise ValueError(f"--max-waiting must be positive, got {self.max_waiting}")
        if not 1 <= self.max_upload_mb <= 1024:
            raise ValueError(f"--max-upload-mb must be 1 to 1024, got {self.max_upload_mb}")
        if self.device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"--device must be auto, cpu or gpu, got {self.device!r}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address, possibly with a port, is this machine's own."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
