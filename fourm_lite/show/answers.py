"""Search results to look at: a contact sheet (PNG) and one self-contained HTML page.

Names and captions come from files and from strangers, so every text is escaped; pictures are drawn
anew as small JPEGs and embedded, so a page needs nothing beside it and leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import open_rgb, thumbnail
from fourm_lite.photos.sources import read_uri
from fourm_lite.search.index.confidence import sureness
from fourm_lite.search.index.hits import Hit, Hits
from fourm_lite.show.contact_sheet import Cell, contact_sheet
from fourm_lite.show.page import data_address, fill

if TYPE_CHECKING:
    from PIL import Image

Reader = Callable[[str], bytes]
"""uri -> bytes of the picture."""

SIDE = 224
COSINE = "cosine"
HIDDEN = ("content_hash", "row_hash", COSINE)

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; background: #fafafa; color: #222 }
h1 { font-size: 20px } section { margin-bottom: 32px }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)); gap: 16px;
     list-style: none; padding: 0 }
li { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 8px;
     overflow-wrap: anywhere }
img { max-width: 100%; display: block; margin: 0 0 6px } li img { margin: 0 auto 6px }
dl { margin: 6px 0 0; font-size: 13px; color: #555 } dt { font-weight: 600 } dd { margin: 0 0 4px }
.none { color: #a00 } .score { color: #1f6fb4 }
"""
PAGE = """{% extends "frame" %}{% block body %}
{% for answer in answers %}
{% set lines = heading(answer) %}
<section><h1>{{ lines[0] }}</h1>
{%- if answer.query_image is not none %}<img alt="" src="{{ asked(answer) }}">{% endif %}
{%- for note in lines[1:] %}
<p{% if answer.hits.good_match is false %} class="none"{% endif %}>{{ note }}</p>{% endfor %}
<ol>
{% for hit in answer.hits %}
{% set shown = picture(hit) %}
<li>{% if shown is string %}<p class="none">{{ shown }}</p>
{%- else %}<img alt="" src="{{ address(shown) }}">{% endif -%}
{{ loop.index }}. {{ hit.id }} <span class="score">{{ score(hit) }}</span><dl>
{%- for name, words in facts(hit) %}<dt>{{ name }}</dt><dd>{{ words }}</dd>{% endfor %}</dl></li>
{% endfor %}
</ol></section>
{% endfor %}
{% endblock %}"""


@dataclass(frozen=True)
class Answer:
    """One query with its hits, to show: what was asked, in words, and perhaps its picture."""

    title: str
    hits: Hits
    query_image: Image.Image | None = None


def answer_sheet(
    answer: Answer, *, columns: int = 5, side: int = SIDE, read: Reader = read_uri
) -> Image.Image:
    """The hits as one picture: thumbnails in order, each under its rank, score and name.

    What was asked for comes first where it is a picture. A hit whose file is gone is an empty cell
    that says so.
    """
    if columns < 1 or side < 16:
        raise ConfigError(f"a sheet has at least 1 column of 16 pixels, got {columns} of {side}")
    cells = [
        Cell(f"{rank}   {score_words(hit)}\n{hit.id}", _picture(hit, side, read))
        for rank, hit in enumerate(answer.hits, 1)
    ]
    if answer.query_image is not None:
        cells.insert(0, Cell("asked for", thumbnail(answer.query_image, side)))
    return contact_sheet(cells, side=side, columns=columns, heading=_heading(answer))


def score_words(hit: Hit) -> str:
    """The score of a hit as people read it; after reranking with the cosine beside it."""
    cosine = hit.columns.get(COSINE)
    if cosine is None:
        return f"{hit.score:.3f}"
    if hit.score != hit.score:
        return f"cosine {cosine:.3f}, not reranked"
    return f"{hit.score:.2f}, cosine {cosine:.3f}"


def html_page(answers: Sequence[Answer], *, side: int = SIDE, read: Reader = read_uri) -> str:
    """One HTML page with all answers; it loads nothing and runs nothing."""
    return fill(
        PAGE, title="Search results", style=STYLE, answers=answers, heading=_heading, facts=_facts,
        score=score_words, picture=lambda hit: _picture(hit, side, read),
        asked=lambda answer: _address(thumbnail(answer.query_image, side)), address=_address,
    )  # fmt: skip


def _address(picture: Image.Image) -> str:
    return data_address(picture, 85)


def _facts(hit: Hit) -> list[tuple[str, str]]:
    """What is known of a hit, its address last."""
    shown = ((n, v) for n, v in hit.columns.items() if v is not None and n not in HIDDEN)
    return [(n, _words(v)) for n, v in sorted(shown, key=lambda pair: pair[0] == "uri")]


def _heading(answer: Answer) -> list[str]:
    sure = answer.hits.p_right
    if sure is None:
        return [answer.title]
    return [answer.title, sureness(answer.hits)]


def _picture(hit: Hit, side: int, read: Reader) -> Image.Image | str:
    """The thumbnail of a hit, or why there is none."""
    uri = hit.columns.get("uri")
    if not isinstance(uri, str):
        return "no picture"
    try:
        return thumbnail(open_rgb(read(uri)), side)
    except (FourMError, OSError) as error:
        return str(error)


def _words(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return " · ".join(_words(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
