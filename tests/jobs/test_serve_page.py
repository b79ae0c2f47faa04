"""The page of `jobs/serve.py` in Chromium: prompt to mesh, upload to variation, a hostile upload, two users at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from g3pt.geometry.files import write_mesh
from g3pt.models.car import G3PT
from g3pt.shapes import make_shape
from pipelines.generate.config import RELEASED
from pipelines.serve import about
from tests.jobs.browser import PICTURE, SOFTWARE_GL, Browser, started
from tests.pipelines.serve.server import Client, serving

pytestmark = pytest.mark.slow
PATIENT_MS = 120_000
WATCH_PREVIEWS = """new MutationObserver(() => {
  globalThis.seen = globalThis.seen || document.querySelector("[data-preview]")?.dataset.preview;
}).observe(document.getElementById("meshes"), {subtree: true, childList: true, attributes: true})"""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    model = G3PT.from_pretrained(str(RELEASED)).eval()
    with serving(model, facts=about.about(str(RELEASED), model), max_bytes=2 << 20) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as playwright:
        found = Browser(playwright, SOFTWARE_GL)
        yield found
        found.chromium.close()


@pytest.fixture(autouse=True)
def nothing_wrong(browser: Browser) -> Iterator[None]:
    """A page has no errors in its console and asks nobody but its server; a refusal is a failed request there."""
    browser.wrong.clear()
    yield
    assert [each for each in browser.wrong if "Failed to load resource" not in each] == []


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Any]:
    found = opened(browser, client)
    yield found
    found.context.close()


def opened(browser: Browser, client: Client, **options: Any) -> Any:
    found = browser.open(f"http://127.0.0.1:{client.port}/", **options)
    found.set_default_timeout(PATIENT_MS)
    expect.set_options(timeout=PATIENT_MS)
    expect(found.locator("#model")).not_to_have_text("model")
    return found


def picture(page: Any, name: str) -> None:
    """Keep a screenshot where G3PT_SCREENSHOTS names a folder."""
    if folder := os.environ.get("G3PT_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def ready(page: Any, count: int) -> None:
    """Wait until this many meshes are there and drawn."""
    expect(page.locator("figure[data-ready] canvas[data-drawn]")).to_have_count(count)


def coarse(page: Any, count: int = 1) -> None:
    """Choose the coarsest grid and this many meshes."""
    page.get_by_text("Settings").click()
    page.get_by_label("Resolution").select_option("32")
    page.get_by_label("Number").fill(str(count))


def test_a_prompt_becomes_meshes_by_keyboard(browser: Browser, client: Client) -> None:
    page = opened(browser, client)
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type("a tall chair")
    page.evaluate(WATCH_PREVIEWS)
    page.keyboard.press("Enter")
    ready(page, 2)
    assert page.evaluate("globalThis.seen") in ("1", "2", "3"), "no preview was shown"
    assert "done in" in page.get_by_role("status").text_content()
    canvas = page.locator("#meshes canvas").first
    expect(canvas).to_have_attribute("data-drawn", re.compile("."))
    before, drawn = canvas.evaluate(PICTURE), canvas.get_attribute("data-drawn")
    assert before
    picture(page, "page")
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    expect(canvas).not_to_have_attribute("data-drawn", drawn)
    assert canvas.evaluate(PICTURE) != before
    links = page.locator("#meshes figure").first.locator("a")
    assert [link.text_content() for link in links.all()] == ["GLB", "OBJ", "PLY", "STL"]
    with page.expect_download() as download:
        links.nth(3).click()
    assert download.value.suggested_filename == "g3pt-0.stl"
    assert "objects (CC0-1.0" in page.locator("#trained").text_content()
    page.context.close()


def test_an_upload_becomes_a_variation_and_a_hostile_one_a_sentence(page: Any, tmp_path: Path) -> None:
    shape = make_shape("shapes/mug-00007")
    write_mesh(tmp_path / "mug.stl", shape.vertices, shape.faces)
    coarse(page)
    page.get_by_label("Mesh to vary").set_input_files(tmp_path / "mug.stl")
    page.get_by_label("Scales kept").fill("3")
    page.get_by_role("button", name="Make").click()
    ready(page, 1)
    picture(page, "variation")
    for name, content, said in (
        ("evil.obj", b"v 0 0 0\nf 1 1 1\n", "zero-extent"),
        ("<img src=x onerror=alert(1)>.exe", b"MZ", "a mesh is one of .glb"),
        ("large.glb", bytes(3 << 20), "a request has at most 2 MB"),
    ):
        page.get_by_label("Mesh to vary").set_input_files(
            {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        )
        page.get_by_role("button", name="Make").click()
        expect(page.get_by_role("alert")).to_contain_text(said)
    assert page.locator("#meshes figure").count() == 1, "what was made before stays"


def test_two_users_at_once(browser: Browser, client: Client) -> None:
    pages = [opened(browser, client) for _ in range(2)]
    for number, page in enumerate(pages):
        coarse(page)
        page.get_by_label("Seed").fill(str(10 + number))
        page.get_by_label("Text", exact=True).fill(("a car", "a lamp")[number])
    for page in pages:
        page.get_by_role("button", name="Make").click()
    for number, page in enumerate(pages):
        ready(page, 1)
        assert f"seed {10 + number}," in page.locator("#meshes figcaption").text_content()
        page.context.close()


def test_a_phone(browser: Browser, client: Client) -> None:
    page = opened(browser, client, width=360, height=740, has_touch=True)
    page.get_by_label("Text", exact=True).fill("a round table")
    coarse(page)
    page.get_by_role("button", name="Make").click()
    ready(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    picture(page, "phone")
    page.context.close()
