"""Makes the pictures of pages in docs/images, with the photos and the model that ship.

python tests/stored_pictures.py     # after a change of a page or of a model; needs a Chromium
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images"
QUALITY = 85
WIDE, PHONE = {"width": 1100, "height": 760}, {"width": 390, "height": 780}
SEARCHES = 3
"""Sections of the demo's page that the README shows."""


def main() -> None:
    """Runs the demo, serves it, and takes the pictures."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as tools:
        work = Path(place)
        words = [sys.executable, "-m", "fourm_lite"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([*words, "demo", "--out", "demo"], cwd=work, env=env, check=True)
        found = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        searches(browser, work / "demo" / "demo.html")
        serve = [*words, "serve", "demo/demo_index", "--model", "mini", "--port", "0"]
        with served(serve, work, env) as url:
            search_page(browser, url, "an animal on a branch", "serve", WIDE)
            search_page(browser, url, "a boat on the water", "serve-phone", PHONE, dark=True)
            any_to_any(browser, url, work / "demo" / "gallery" / "moose.jpg")
        browser.close()


@contextmanager
def served(command: list[str], work: Path, env: dict[str, str]) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    process = subprocess.Popen(command, cwd=work, env=env, text=True, stderr=subprocess.PIPE)
    assert process.stderr is not None
    yield next(line.strip() for line in process.stderr if line.startswith("http://"))
    process.terminate()
    process.wait(timeout=60)


def searches(browser: Browser, page: Path) -> None:
    """The first searches of the demo's page, without their commands."""
    shown = browser.new_page(viewport={"width": 1000, "height": 900})
    shown.goto(page.as_uri())
    shown.add_style_tag(content="pre { display: none }")
    boxes: list[Any] = [
        shown.locator(what).nth(number).bounding_box()
        for what, number in (("h2", 0), ("ul", SEARCHES - 1))
    ]
    top, bottom = boxes[0]["y"] - 12, boxes[1]["y"] + boxes[1]["height"] + 12
    store(shown.screenshot(full_page=True), "search", (0, int(top), 1000, int(bottom)))
    shown.close()


def search_page(
    browser: Browser, url: str, words: str, name: str, size: Any, *, dark: bool = False
) -> None:
    """The page with an answer to some words."""
    page = _opened(browser, url, size, dark)
    page.fill("#text", words)
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text(" ms", timeout=120_000)
    page.wait_for_load_state("networkidle")
    store(page.screenshot(), name)
    page.context.close()


def any_to_any(browser: Browser, url: str, photo: Path) -> None:
    """The tab that makes every modality of one photo, when it is done."""
    page = _opened(browser, url, WIDE, dark=False)
    page.click("#tab-any")
    page.set_input_files("#any-file", photo)
    page.click("#any-go:enabled")
    expect(page.locator("#any-status")).to_have_text("Done.", timeout=300_000)
    store(page.screenshot(full_page=True), "serve-any")
    page.context.close()


def _opened(browser: Browser, url: str, size: Any, dark: bool) -> Page:
    context = browser.new_context(
        viewport=size,
        color_scheme="dark" if dark else "light",
        device_scale_factor=1.5 if dark else 1.0,
    )
    page = context.new_page()
    page.goto(url)
    return page


def store(png: bytes, name: str, cut: tuple[int, int, int, int] | None = None) -> None:
    """A picture as the pages show it."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.crop(cut) if cut else picture
    picture.save(FOLDER / f"{name}.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
