"""Self-contained HTML pages: headings, commands, pictures, words. They load and run nothing.

Every text is escaped by the template engine, wherever it stands; a page's own style and its
pictures' addresses are the only things that go in as they are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 24px auto; padding: 0 16px;
       color: #222; background: #fafafa }
h1 { font-size: 26px } h2 { font-size: 19px; margin-top: 36px }
pre { background: #272822; color: #f8f8f2; padding: 10px 12px; border-radius: 6px;
      white-space: pre-wrap; overflow-wrap: anywhere }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 14px }
* { box-sizing: border-box }
li { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 8px; width: 176px }
.text { white-space: pre-line } @media (max-width: 480px) { li { width: 100% } }
img { width: 100%; display: block; image-rendering: auto; border-radius: 3px }
small { display: block; color: #555; overflow-wrap: anywhere } b { font-size: 13px }
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
<li>{% if card.content is string %}<blockquote>{{ card.content or "(empty)" }}</blockquote>
{%- else %}<img alt="{{ card.title }}" src="{{ embedded(card.content) }}">{% endif -%}
<b>{{ card.title }}</b>{% if card.note %}<small>{{ card.note }}</small>{% endif %}</li>
{% endfor %}
</ul>{% endif %}
{% endfor %}
{% endblock %}"""


@dataclass(frozen=True)
class Card:
    """One picture or text with a title and a note."""

    title: str
    content: Image | str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, what it tells, the command that does it, and its cards."""

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
