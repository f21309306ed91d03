from __future__ import annotations

import pytest

from fourm_lite.demo.drawings import drawings
from fourm_lite.demo.gallery import make_gallery
from fourm_lite.demo.page import Card, Section, render
from fourm_lite.errors import ConfigError
from fourm_lite.show import Cell, contact_sheet


def test_drawings_are_different_and_always_the_same():
    first, again = list(drawings(30, size=32)), list(drawings(30, size=32))

    assert len({d.caption for d in first}) == 30
    assert [d.picture.tobytes() for d in first] == [d.picture.tobytes() for d in again]


def test_the_gallery_of_nobody_holds_drawings(tmp_path):
    gallery = make_gallery(None, tmp_path / "gallery", num_drawings=5)

    assert len(list(gallery.glob("drawing_*.png"))) == 5


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(ConfigError, match="folder with pictures"):
        make_gallery(tmp_path, tmp_path / "gallery")


def test_the_page_escapes_what_it_shows():
    evil = "<script>alert('x')</script>"

    page = render(evil, [Section(evil, evil, evil, [Card(evil, evil, evil)])], warning=evil)

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_a_contact_sheet_holds_every_cell():
    (drawing,) = drawings(1, size=40)
    cells = [Cell("picture", drawing.picture), Cell("text " * 30, "名前 " * 200), Cell("empty", "")]

    sheet = contact_sheet(cells, side=64, columns=2)

    assert sheet.size == (2 * 72 + 8, 2 * 90 + 8)
    assert len(sheet.crop((8, 26, 72, 90)).getcolors(4096)) > 1


def test_commands_on_the_page_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    from fourm_lite.demo.run import run_demo

    photos = tmp_path / "my photos"
    photos.mkdir()
    for drawing in drawings(3, size=32):
        drawing.picture.save(photos / drawing.name)

    page = run_demo(photos, tmp_path / "out", say=lambda text: None).read_text()

    quoted = f"&#x27;{photos}&#x27;"
    assert f"fourm-lite index {quoted} -o IDX" in page
    assert f"--input &#x27;rgb={photos}/drawing_000.png&#x27;" in page
    for title in ("Reranked", "Colour palette", "Canny edges", "Semantic segmentation", "Caption"):
        assert title in page
