"""Debian's or Ubuntu's Chromium for tests, with a list of what went wrong on a page."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

QUIET = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NO_GL = ["--disable-gpu", "--disable-3d-apis"]
# What a canvas shows, as one number, read off a small copy: 0 where nothing was drawn.
PICTURE = """canvas => { const copy = new OffscreenCanvas(48, 48).getContext('2d', {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0, 48, 48);
  const data = copy.getImageData(0, 0, 48, 48).data; let sum = 0, drawn = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) { drawn++; sum = (sum * 31 + data[i] + i) % 1000003; }
  return drawn > 40 ? sum + 1 : 0; }"""


def chromium() -> str | None:
    """Debian's or Ubuntu's Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Chromium with a list of its errors."""

    def __init__(self, playwright: Any, flags: list[str]) -> None:
        self.chromium = playwright.chromium.launch(executable_path=chromium(), args=[*QUIET, *flags])
        self.wrong: list[str] = []

    def open(self, file: Path | str, width: int = 1280, **options: Any) -> Any:
        """A new page: loaded from disk and offline, or from an address, whose server alone may be asked."""
        offline, height = isinstance(file, Path), options.pop("height", 900)
        allowed = ("file:", "data:", "blob:") if offline else (file, "data:", "blob:")
        context = self.chromium.new_context(viewport={"width": width, "height": height}, offline=offline, **options)
        page = context.new_page()
        page.on(
            "console",
            lambda message: (
                self.wrong.append(f"console {message.type}: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith(allowed) else self.wrong.append(f"request: {request.url}"),
        )
        page.goto(file.as_uri() if offline else file)
        return page


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """Playwright; the test is skipped on a machine without Chromium."""
    if chromium() is None:
        pytest.skip("no chromium on this machine (apt install chromium): the page is not looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found
