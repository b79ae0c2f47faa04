"""Reports in Chromium without a network: meshes turn by mouse, touch and key, and the console has no errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.page import write_report
from tests.jobs.browser import NO_GL, PICTURE, SOFTWARE_GL, Browser, started
from tests.pipelines.report_folders import make_dataset, make_evaluation, make_generation, make_run, make_study
from tests.pipelines.report_numbers import check_numbers

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)> \"' \u202eright to left " + "unbroken" * 60


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Browser]:
    found = Browser(playwright, SOFTWARE_GL)
    yield found
    found.chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report about a folder of each kind, with hostile text in it."""
    folder = tmp_path_factory.mktemp("report") / "all"
    make_dataset(
        folder / "data",
        caption=HOSTILE,
        author=HOSTILE,
        license=HOSTILE,
        attribution_url="javascript:alert(3)",
        source_url="https://example.org/" + HOSTILE,
    )
    make_run(folder / "runs" / "cvq")
    make_run(folder / "runs" / "car", "car")
    make_study(folder / "study")
    make_generation(folder / "meshes", text=HOSTILE, error=HOSTILE)
    make_evaluation(folder / "tokenizer.json", caption=HOSTILE, author=HOSTILE)
    make_evaluation(folder / "generator.json", "car", caption=HOSTILE)
    return write_report(folder)


def look_through(page: Any) -> None:
    """Scroll every canvas into view until all are drawn."""
    for canvas in page.locator("canvas[data-object]").all():
        canvas.scroll_into_view_if_needed()
        page.wait_for_function("canvas => canvas.dataset.drawn", arg=canvas.element_handle(), timeout=20_000)


def test_every_canvas_shows_something_and_turns(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    canvases = page.locator("canvas[data-object]").all()
    assert len(canvases) > 15, "more than a browser's 16 WebGL contexts with the datasets' objects"
    for canvas in canvases:
        canvas.scroll_into_view_if_needed()
        page.wait_for_function("canvas => canvas.dataset.drawn", arg=canvas.element_handle(), timeout=20_000)
        before = canvas.evaluate(PICTURE)
        assert before, "nothing but background"
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.6, steps=2)
        page.mouse.up()
        dragged = settled(page, canvas, before)
        canvas.focus()
        page.keyboard.press("ArrowRight")
        settled(page, canvas, dragged)
    page.keyboard.press("+")
    page.keyboard.press("Home")
    assert settled(page, canvas, dragged) == before, "Home brings the first view back"
    assert page.locator("figcaption", has_text="<script>alert(1)</script>").count() > 0, "hostile words stay words"
    assert page.locator("main script, main img:not(.picture), a[href^='javascript']").count() == 0
    assert browser.wrong == []


def settled(page: Any, canvas: Any, before: int) -> int:
    """The canvas's picture, once it differs from `before` and two readings in a row are equal."""
    last = before
    for _ in range(60):
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        now = canvas.evaluate(PICTURE)
        if now != before and now == last:
            return now
        last = now
    raise AssertionError("the picture did not change")


def test_input_and_reconstruction_turn_together(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    pair = page.locator("section", has=page.locator("h2", has_text="Reconstructions")).locator(".pair").first
    left, right = pair.locator("canvas").nth(0), pair.locator("canvas").nth(1)
    right.scroll_into_view_if_needed()
    page.wait_for_function("canvas => canvas.dataset.drawn", arg=right.element_handle(), timeout=20_000)
    before = right.evaluate(PICTURE)
    left.focus()
    page.keyboard.press("ArrowLeft")
    assert settled(page, right, before)


def test_every_number_equals_the_files(browser: Browser, report: Path) -> None:
    """The numbers that the browser shows equal those of the files."""
    page = browser.open(report)
    assert check_numbers(page.content(), report.parent) > 80
    shown = page.evaluate(
        "() => [...document.querySelectorAll('data')].map(e => [e.textContent, e.innerText.trim() || e.textContent])"
    )
    assert all(text == visible for text, visible in shown)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows(browser: Browser, report: Path, width: int) -> None:
    page = browser.open(report, width=width)
    page.evaluate("() => document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        f"() => [...document.querySelectorAll('main > section > *')].filter(e => e.getBoundingClientRect().right > "
        f"{width} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_a_page_scrolls_past_its_canvases(browser: Browser, report: Path) -> None:
    """The wheel over a canvas scrolls the page, and a finger that moves up does too."""
    page = browser.open(report, width=400, has_touch=True)
    canvas = page.locator("canvas[data-object]").first
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), page.evaluate("() => window.scrollY")
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, 300)
    page.wait_for_function("before => window.scrollY > before + 100", arg=before)
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "pan-y"


def test_a_finger_turns_a_shape_sideways(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=400, has_touch=True)
    canvas = page.locator("canvas[data-object]").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_function("canvas => canvas.dataset.drawn", arg=canvas.element_handle(), timeout=20_000)
    box, before, scrolled = canvas.bounding_box(), canvas.evaluate(PICTURE), page.evaluate("() => window.scrollY")
    touch = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", 20), ("touchMove", 50), ("touchMove", 110), ("touchEnd", None)):
        points = [] if x is None else [{"x": box["x"] + x, "y": box["y"] + 60}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert settled(page, canvas, before)
    assert page.evaluate("() => window.scrollY") == scrolled


def test_without_webgl_shapes_are_still_drawn(playwright: Any, report: Path) -> None:
    browser = Browser(playwright, NO_GL)
    page = browser.open(report)
    look_through(page)
    assert page.locator("#no-webgl").is_visible()
    assert all(canvas.evaluate(PICTURE) for canvas in page.locator("canvas[data-object]").all())
    assert browser.wrong == []
    browser.chromium.close()
