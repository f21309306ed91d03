"""The page as a person uses it, in a headless Chromium."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest
from tiny_pipeline import photo

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
)

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, else Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as tools:
        try:
            opened = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """A page of the server; no error in its console and no request elsewhere."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    faults: list[str] = []
    hosts: set[str | None] = set()
    opened.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: hosts.add(urlsplit(r.url).hostname))
    opened.goto(server.url)
    playwright.expect(opened.locator("#rows")).to_have_text("12 photos")
    yield opened
    context.close()
    assert not faults
    assert hosts <= {"127.0.0.1", ""} | {None}


def hits_of(page) -> list[str]:
    page.wait_for_selector(".hit")
    return page.eval_on_selector_all(".hit", "nodes => nodes.map(n => n.dataset.id)")


def wait_for_answer(page) -> None:
    playwright.expect(page.locator("#status")).to_contain_text(" ms", timeout=15_000)


def ask(page, words: str) -> list[str]:
    page.fill("#text", words)
    page.press("#text", "Enter")
    wait_for_answer(page)
    return hits_of(page)


def drop(page, data: bytes) -> None:
    """Drops a picture onto the page, as a hand does."""
    script = """bytes => {
        const file = new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"});
        const carried = new DataTransfer();
        carried.items.add(file);
        for (const kind of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(
                new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, list(data))


def as_png(picture) -> bytes:
    import io

    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_words_bring_photos_with_scores(page):
    hits = ask(page, "two dogs")

    assert len(hits) == 12
    assert "1. " in page.inner_text(".hit")
    for place in range(2):
        image = page.locator(".hit img").nth(place)
        playwright.expect(image).to_have_js_property("naturalWidth", 60)


def test_a_dropped_picture_finds_itself_and_words_may_join_it(page):
    drop(page, as_png(photo(4)))
    wait_for_answer(page)
    assert hits_of(page)[0] == "shelf/04"
    assert page.is_visible("#given img")

    ask(page, "two dogs")

    assert page.is_visible("#given img")


def test_a_click_on_a_photo_asks_for_more_like_it(page):
    first, second, *_ = ask(page, "a red circle")

    page.click(f'.hit[data-id="{second}"]')

    page.wait_for_selector(f'.hit[data-id="{second}"]', state="detached")
    assert "More like" in page.inner_text("#given")
    assert first in hits_of(page)


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("/")
    page.keyboard.type("two dogs")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    second = hits_of(page)[1]

    page.focus(f'.hit[data-id="{second}"]')
    page.keyboard.press("Enter")

    page.wait_for_selector(f'.hit[data-id="{second}"]', state="detached")
    assert len(hits_of(page)) == 11


def test_filters_weights_and_not_reach_the_server(page):
    page.click("summary")
    page.fill("#where", "year > 2020")
    page.fill("#not", "a red circle")
    page.check("#weigh")
    with page.expect_request("**/search") as sent:
        hits = ask(page, "two dogs")

    body = sent.value.post_data_json
    assert body["weights"] == {"text": 1}
    assert body["not_text"] == "a red circle"
    assert len(hits) == 6


def test_what_the_server_refuses_stands_on_the_page(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.click("summary")
    page.fill("#where", "colour = 3")
    page.fill("#text", "two dogs")
    page.press("#text", "Enter")

    page.wait_for_selector("#status.bad")

    assert "colour" in page.inner_text("#status")
    context.close()


def test_one_photo_becomes_every_modality(page):
    page.click("#tab-any")
    page.set_input_files(
        "#any-file", {"name": "a.png", "mimeType": "image/png", "buffer": as_png(photo(2))}
    )
    page.wait_for_selector("#any-go:enabled")
    for name in ("caption", "tok_rgb@32"):
        page.uncheck(f'#targets input[value="{name}"]')

    page.click("#any-go")

    playwright.expect(page.locator("#any-status")).to_have_text("Done.", timeout=30_000)
    names = page.eval_on_selector_all("#made b", "nodes => nodes.map(n => n.textContent)")
    assert names == ["Given", "tok_semseg@32", "tok_vector_global", "color_palette"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)

    ask(page, "two dogs")

    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(x) for x in ground.removeprefix("rgb(").rstrip(")").split(",")) > 3 * 128
    assert light == (scheme == "light")


def test_the_description_is_a_page(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/docs")

    page.wait_for_selector("text=POST /search")

    assert page.is_visible("text=where")
    assert f"{server.url}/search" in page.inner_text("pre")
    context.close()
