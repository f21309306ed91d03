from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from fourm_lite.demo.examples import (
    choose_questions,
    drawings,
    make_gallery,
    pictures,
    shipped_records,
)
from fourm_lite.demo.run import INDEX, MARKER, index_place, run_demo
from fourm_lite.errors import ConfigError
from fourm_lite.modalities.codecs import Key
from fourm_lite.modalities.pictures import png
from fourm_lite.photos.item import Item
from fourm_lite.photos.sources import folder_items
from fourm_lite.show.contact_sheet import Cell, contact_sheet
from fourm_lite.show.page import Card, Section, render


def test_drawings_are_different_and_always_the_same():
    first, again = list(drawings(30, size=32)), list(drawings(30, size=32))

    assert len({d.caption for d in first}) == 30
    assert [d.picture.tobytes() for d in first] == [d.picture.tobytes() for d in again]


def test_the_gallery_of_nobody_holds_the_photos_that_ship_and_drawings_if_asked(tmp_path):
    gallery = make_gallery(None, tmp_path / "gallery", num_drawings=5)

    assert len(list(gallery.glob("drawing_*.png"))) == 5
    assert len(list(gallery.glob("*.jpg"))) >= 40


def test_every_photo_that_ships_has_a_caption_an_author_a_free_licence_and_a_source(tmp_path):
    gallery = make_gallery(None, tmp_path / "gallery")

    records = shipped_records(gallery)

    assert {path.name for path in pictures(gallery)} == records.keys()
    for record in records.values():
        assert record.captions[0]
        assert record.fields["author"]
        assert record.fields["source"].startswith("https://")
        assert record.fields["licence"] == "public domain" or re.fullmatch(
            r"CC0-1\.0|CC-BY(-SA)?-[1-4]\.0", record.fields["licence"]
        )


def test_questions_are_those_with_the_largest_lead_and_the_one_with_the_worst_rank():
    scores = np.eye(5) * 0.5
    scores[0, 0], scores[1, 1] = 0.9, 0.7
    scores[3, :3] = 0.6  # its own photo comes fourth
    scores[4, 0] = 0.4

    chosen = choose_questions("abcde", scores)

    assert chosen.answered == ("a", "b", "c")
    assert chosen.failed == ("d", 4)


def test_where_every_photo_comes_first_nothing_fails_and_where_none_does_nothing_is_answered():
    assert choose_questions("ab", np.eye(2)).failed is None
    assert choose_questions("ab", 1 - np.eye(2)).answered == ()


def test_a_folder_without_pictures_or_none_at_all_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(ConfigError, match="holds none"):
        make_gallery(tmp_path, tmp_path / "gallery")
    with pytest.raises(ConfigError, match="there is none at"):
        make_gallery(tmp_path / "gone", tmp_path / "gallery")


def test_the_gallery_is_what_an_index_finds(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("a.PNG", "b.pgm", "no_ending"):
        (tmp_path / "real" / name).write_bytes(png(next(drawings(1)).picture))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos", target_is_directory=True)

    found = pictures(tmp_path / "photos")

    items = [i for i in folder_items(tmp_path / "photos") if isinstance(i, Item)]
    assert [str(p) for p in found] == [i.uri for i in items]
    assert len(found) == 3


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_pages_folder_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ConfigError, match="--out expects a folder"):
        run_demo(tmp_path, tmp_path / "file" / below)

    assert (tmp_path / "file").read_text() == "mine"


def test_what_the_demo_did_not_make_is_left_alone(tmp_path):
    mine = tmp_path / INDEX / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")

    with pytest.raises(ConfigError, match="not made by it"):
        run_demo(tmp_path, tmp_path)

    assert mine.read_text() == "mine"


def test_a_demo_empties_the_folder_that_a_demo_made(tmp_path):
    (index_place(tmp_path / INDEX) / "rows").write_text("old")

    place = index_place(tmp_path / INDEX)

    assert [p.name for p in place.iterdir()] == [MARKER]


def test_the_page_escapes_what_it_shows():
    evil = "<script>alert('x')</script>"
    sections = [Section(evil, evil, evil, [Card(evil, evil, evil)])]

    page = render(evil, sections, text=evil, warning=evil)

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_a_contact_sheet_holds_every_cell():
    (drawing,) = drawings(1, size=40)
    cells = [Cell("picture", drawing.picture), Cell("text " * 30, "名前 " * 200), Cell("empty", "")]

    sheet = contact_sheet(cells, side=64, columns=2)

    short = contact_sheet([cells[0], Cell("text", "名"), cells[2]], side=64, columns=2)
    assert sheet.width == 2 * 72 + 8
    assert len(short.crop((8, 26, 72, 90)).getcolors(4096)) > 1
    assert sheet.height > short.height + 20 * 18  # words go on in more lines and are not cut


def test_a_legend_stands_on_sheets_and_pages_in_the_place_of_a_text():
    legend = [Key("dog <b>", "25 %", (10, 200, 30)), Key("brightness", "109 of 255")]
    picture = Image.new("RGB", (8, 8), "white")

    sheet = contact_sheet([Cell("map", picture, legend), Cell("numbers", "SAID", legend)], side=160)
    page = render("t", [Section("s", cards=[Card("numbers", "SAID", legend=legend)])])

    assert (np.asarray(sheet) == (10, 200, 30)).all(axis=2).sum() > 2 * 100
    assert sheet.height == contact_sheet([Cell("map", picture, legend)], side=160).height
    assert "dog &lt;b&gt;" in page
    assert "rgb(10, 200, 30)" in page
    assert "SAID" not in page


def test_commands_on_the_page_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    photos = tmp_path / "my photos"
    photos.mkdir()
    for drawing in drawings(3, size=32):
        drawing.picture.save(photos / drawing.name)

    page = run_demo(photos, tmp_path / "out", say=lambda text: None).read_text()

    quoted = f"&#39;{photos}&#39;"
    assert f"fourm-lite index {quoted} -o IDX" in page
    assert f"--input &#39;rgb={photos}/drawing_000.png&#39;" in page
    for title in ("Reranked", "Colour palette", "Canny edges", "Semantic segmentation", "Caption"):
        assert title in page


def test_one_photo_is_a_gallery_and_what_is_cut_off_is_left_out(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (drawing,) = drawings(1, size=64)
    drawing.picture.save(photos / "a.png")
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:60])
    told = []

    theirs = tmp_path / "out" / "index" / "mine.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")

    page = run_demo(photos, tmp_path / "out", say=told.append).read_text()

    assert "1 photo, which" in page
    assert theirs.read_text() == "mine"
    assert any("b.png" in line for line in told)
