import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.search.index.hits import Hits
from fourm_lite.show.page import Answer, answer_sheet, html_page

EVIL = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;"


class Tags(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    @classmethod
    def text_of(cls, page):
        tags = cls()
        tags.feed(page)
        return tags.text

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (400, 200), "red").save(path)
    return str(path)


def hits(uris, **columns):
    ids = [f"id{i}" for i in range(len(uris))]
    return Hits(ids, np.linspace(0.9, 0.1, len(ids), dtype=np.float32), {"uri": uris, **columns})


def test_a_page_escapes_titles_names_and_captions(red):
    found = Hits([EVIL], np.float32([0.5]), {"uri": [red], "captions": [[EVIL, "b"]], EVIL: [EVIL]})
    page = Tags()

    page.feed(html_page([Answer(EVIL, found)]))

    assert page.tags.count("img") == 1
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.text.count(EVIL) == 5


def test_a_page_stands_alone_and_runs_nothing(red):
    text = html_page([Answer("query", hits([red]), Image.new("RGB", (9, 9)))])

    assert not re.search(r"https?:|src=\"(?!data:)|href", text)
    assert "default-src 'none'" in text
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    opened = [Image.open(io.BytesIO(base64.b64decode(p))) for p in pictures]
    assert [p.size for p in opened] == [(9, 9), (224, 112)]


def test_a_page_says_when_there_is_no_good_match_and_when_a_file_is_gone(red, tmp_path):
    lost = str(tmp_path / "lost.png")
    found = Hits(["a"], np.float32([0.2]), {"uri": [lost]}, p_right=0.07, good_match=False)

    text = html_page([Answer("query", found)])

    assert "no good match (probability that the first hit is right: 0.07)" in text
    assert "cannot be read any more" in text


def _columns_of(sheet, color):
    """The first column of pixels that holds a colour, and the one behind the last."""
    found = (np.asarray(sheet) == color).all(axis=2).any(axis=0).nonzero()[0]
    return found[0], found[-1] + 1


def test_a_sheet_shows_hits_in_order_and_marks_what_is_missing(red, tmp_path):
    blue = tmp_path / "blue.png"
    Image.new("RGB", (50, 50), "blue").save(blue)
    answer = Answer("a query", hits([red, str(blue), str(tmp_path / "gone"), None]))

    sheet = answer_sheet(answer, columns=2, side=50)

    assert sheet.width == 3 * 58 + 8
    assert _columns_of(sheet, (255, 0, 0)) == (8, 8 + 50)
    assert _columns_of(sheet, (0, 0, 255)) == (8 + 58, 8 + 58 + 50)


def test_what_was_asked_for_stands_first_and_reranked_scores_keep_their_cosine(red):
    found = hits([red, red], cosine=[0.8, 0.7])
    found = Hits(found.ids, np.float32([-12.25, np.nan]), found.columns)
    answer = Answer("a query", found, Image.new("RGB", (30, 30), "blue"))

    sheet, page = answer_sheet(answer, side=50), html_page([answer])

    assert _columns_of(sheet, (0, 0, 255)) == (8, 8 + 50)
    assert _columns_of(sheet, (255, 0, 0))[0] == 8 + 58
    assert "-12.25, cosine 0.800" in page
    assert "cosine 0.700, not reranked" in page
    assert "nan" not in Tags.text_of(page)


def test_no_hits_make_a_sheet_and_a_page_too():
    answer = Answer("nothing", Hits([], np.empty(0, np.float32), p_right=0.0, good_match=False))

    assert answer_sheet(answer).size[0] > 0
    assert "no good match" in html_page([answer])
    with pytest.raises(ConfigError):
        answer_sheet(answer, columns=0)


def test_a_chinese_name_does_not_stop_a_sheet(red):
    found = Hits(["猫/照片.jpg"], np.float32([0.5]), {"uri": [red]})

    assert answer_sheet(Answer("猫", found)).size[0] > 0
