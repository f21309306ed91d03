"""Self-contained HTML pages, and the answers of a search as one or as a contact sheet.

Pages load and run nothing. Names and captions come from files and from strangers, so the template
engine escapes every text; only a page's own style and its pictures' addresses go in as they are.
Pictures are drawn anew as small JPEGs and embedded, so a page needs nothing beside it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import open_rgb, thumbnail
from fourm_lite.photos.sources import read_uri
from fourm_lite.search.calibration.probability import sureness
from fourm_lite.search.index.hits import Hit, Hits
from fourm_lite.show.contact_sheet import Cell, contact_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from fourm_lite.modalities.legend import Key

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 24px auto; padding: 0 16px;
       color: #222; background: #fafafa }
h1 { font-size: 26px } h2 { font-size: 19px; margin-top: 36px }
pre { background: #272822; color: #f8f8f2; padding: 10px 12px; border-radius: 6px;
      white-space: pre-wrap; overflow-wrap: anywhere }
ul { list-style: none; padding: 0; display: grid; gap: 14px;
     grid-template-columns: repeat(auto-fill, minmax(min(160px, 44vw), 1fr)) }
* { box-sizing: border-box } .text { white-space: pre-line }
li { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 8px }
img { width: 100%; display: block; image-rendering: auto; border-radius: 3px }
small { display: block; color: #555; overflow-wrap: anywhere } b { font-size: 13px }
table { font-size: 12px; width: 100%; border-spacing: 0 2px; margin-top: 6px }
td { padding: 0; overflow-wrap: anywhere }
td + td { text-align: right; color: #555; white-space: nowrap }
.even { aspect-ratio: 1; object-fit: contain; background: #f4f4f4 }
i { display: inline-block; width: 11px; height: 11px; margin-right: 5px; border: 1px solid #ccc }
.warning { background: #fff3cd; border: 1px solid #e0c060; padding: 10px 12px; border-radius: 6px }
blockquote { margin: 0; font-size: 13px; min-height: 40px; overflow-wrap: anywhere;
             white-space: pre-line }
"""
_LEAST = 160  # pixels that a card shows
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body>{% block body %}{% endblock %}</body></html>
"""
_PAGE = """{% extends "frame" %}{% block body %}<h1>{{ title }}</h1>
{% if warning %}<p class="warning">{{ warning }}</p>{% endif %}
{%- if text %}<p class="text">{{ text }}</p>{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>
{% endif %}{% if section.command %}<pre>{{ section.command }}</pre>
{% endif %}{% if section.cards %}<ul>
{% for card in section.cards %}
<li>{% if card.content is not string -%}
<img alt="{{ card.title }}" src="{{ embedded(card.content) }}"
{%- if card.content.width < 3 * card.content.height %} class="even"{% endif %}>
{%- elif not card.legend %}<blockquote>{{ card.content or "(empty)" }}</blockquote>{% endif -%}
<b>{{ card.title }}</b>{% if card.note %}<small>{{ card.note }}</small>{% endif %}
{%- if card.legend %}<table>{% for key in card.legend %}<tr><td>
{%- if key.color %}<i style="background: rgb{{ key.color }}"></i>{% endif %}{{ key.name }}</td>
{%- if key.value %}<td>{{ key.value }}</td>{% endif %}</tr>{% endfor %}</table>{% endif %}</li>
{% endfor %}
</ul>{% endif %}
{% endfor %}
{% endblock %}"""


@dataclass(frozen=True)
class Card:
    """One picture or text with a title, a note and a legend, which stands in a text's place."""

    title: str
    content: Image | str
    note: str = ""
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Section:
    """A heading, its text, the command that does it, and its cards."""

    title: str
    text: str = ""
    command: str = ""
    cards: Sequence[Card] = ()


def render(title: str, sections: Sequence[Section], *, text: str = "", warning: str = "") -> str:
    """The page; every text is escaped, pictures are embedded."""
    return fill(
        _PAGE, title=title, style=_STYLE, sections=sections, text=text, warning=warning,
        embedded=_embedded,
    )  # fmt: skip


def fill(template: str, **values: Any) -> str:
    """A page from a template whose block `body` stands in the frame that all pages have."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    engine = Environment(
        autoescape=True, loader=DictLoader({"frame": _FRAME, "page": template}),
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return engine.get_template("page").render(**values)


def data_address(picture: Image, quality: int) -> str:
    """A picture drawn anew as a JPEG that stands in the page itself."""
    data = io.BytesIO()
    picture.convert("RGB").save(data, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _embedded(picture: Image) -> str:
    """A picture as a data address, at most 320 pixels wide; a small map as whole squares."""
    from PIL import Image

    small = picture.convert("RGB")
    small.thumbnail((320, 320))
    if (times := _LEAST // max(small.size)) > 1:
        size = (small.width * times, small.height * times)
        small = small.resize(size, Image.Resampling.NEAREST)
    return data_address(small, 86)


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
    query_image: Image | None = None


def answer_sheet(
    answer: Answer, *, columns: int = 5, side: int = SIDE, read: Reader = read_uri
) -> Image:
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


def _address(picture: Image) -> str:
    return data_address(picture, 85)


def _facts(hit: Hit) -> list[tuple[str, str]]:
    """What is known of a hit, its address last."""
    shown = ((n, v) for n, v in hit.columns.items() if v is not None and n not in HIDDEN)
    return [(n, _words(v)) for n, v in sorted(shown, key=lambda pair: pair[0] == "uri")]


def _heading(answer: Answer) -> list[str]:
    told = sureness(answer.hits)
    return [answer.title, told] if told else [answer.title]


def _picture(hit: Hit, side: int, read: Reader) -> Image | str:
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
