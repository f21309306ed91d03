"""One self-contained HTML page: headings, commands, pictures, words. It loads and runs nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    banner = f'<p class="warning">{html.escape(warning)}</p>' if warning else ""
    banner += f'<p class="text">{html.escape(text)}</p>' if text else ""
    body = "\n".join(_section(s) for s in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{banner}\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.command:
        parts.append(f"<pre>{html.escape(section.command)}</pre>")
    if section.cards:
        parts.append("<ul>" + "\n".join(_card(c) for c in section.cards) + "</ul>")
    return "\n".join(parts)


def _card(card: Card) -> str:
    if isinstance(card.content, str):
        shown = f"<blockquote>{html.escape(card.content) or '(empty)'}</blockquote>"
    else:
        shown = f'<img alt="{html.escape(card.title, quote=True)}" src="{_embedded(card.content)}">'
    note = f"<small>{html.escape(card.note)}</small>" if card.note else ""
    return f"<li>{shown}<b>{html.escape(card.title)}</b>{note}</li>"


def _embedded(picture: Image) -> str:
    """A picture as a data address, at most 320 pixels wide; a small map as whole squares."""
    from PIL import Image

    small = picture.convert("RGB")
    small.thumbnail((320, 320))
    if (times := _LEAST // max(small.size)) > 1:
        size = (small.width * times, small.height * times)
        small = small.resize(size, Image.Resampling.NEAREST)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
