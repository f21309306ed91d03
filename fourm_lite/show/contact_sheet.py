"""Pictures for people: values side by side on one sheet, each under its title, with its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourm_lite.modalities.legend import Key, drawable, font, wrapped
from fourm_lite.modalities.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

    from fourm_lite.pipeline.outputs import Generated

MARGIN, GAP, LINE, SWATCH = 8, 16, 18, 12
MOST_LINES = 40
_INK, _PALE, _PAPER, _FRAME = (20, 20, 20), (95, 95, 95), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Cell:
    """One thing to show: a picture or a text, a title above it and a legend under it.

    A legend stands in the place of a text, which says the same in other words.
    """

    title: str
    content: Image | str
    legend: Sequence[Key] = ()

    @classmethod
    def of(cls, made: Generated) -> Cell:
        """A generated value under its title."""
        return cls(made.title or made.modality, made.picture, made.legend)


def contact_sheet(
    cells: Sequence[Cell], *, side: int = 224, columns: int = 5, heading: Sequence[str] = ()
) -> Image:
    """All cells on one white sheet, under the lines of a heading; rows are as high as they need.

    Units:
        side: pixels of a cell's width; pictures are scaled to fit and keep their shape
    """
    from PIL import Image

    columns = max(1, min(columns, len(cells)))
    step = side + MARGIN
    width = max(columns, 3 if heading else 1) * step + MARGIN
    rows = [_row(cells[i : i + columns], side) for i in range(0, len(cells), columns)]
    parts = [*([_lines(heading, width - 2 * MARGIN)] if heading else []), *rows]
    height = sum(part.height + GAP for part in parts) + 2 * MARGIN - GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height + GAP
    return sheet


def _row(cells: Sequence[Cell], side: int) -> Image:
    """Cells beside each other, their contents in one line below the highest title."""
    from PIL import Image

    titles = [_lines(cell.title.split("\n") if cell.title else (), side) for cell in cells]
    bodies = [_body(cell, side) for cell in cells]
    top = max(title.height for title in titles)
    height = top + max(body.height for body in bodies)
    row = Image.new("RGB", (len(cells) * (side + MARGIN) - MARGIN, height), _PAPER)
    for number, (title, body) in enumerate(zip(titles, bodies, strict=True)):
        row.paste(title, (number * (side + MARGIN), 0))
        row.paste(body, (number * (side + MARGIN), top))
    return row


def _body(cell: Cell, side: int) -> Image:
    from PIL import Image

    if isinstance(cell.content, str):
        parts = [] if cell.legend else [_text(cell.content, side)]
    else:
        parts = [_scaled(cell.content, side)]
    parts += [_key(key, side) for key in cell.legend[:MOST_LINES]]
    if (more := len(cell.legend) - MOST_LINES) > 0:
        parts.append(_lines([f"and {more} more"], side))
    body = Image.new("RGB", (side, sum(part.height for part in parts)), _PAPER)
    top = 0
    for part in parts:
        body.paste(part, ((side - part.width) // 2, top))
        top += part.height
    return body


def _lines(texts: Sequence[str], width: int) -> Image:
    """Texts below each other, each in as many lines as it needs."""
    from PIL import Image, ImageDraw

    lines = [line for text in texts for line in wrapped(text, width)]
    part = Image.new("RGB", (width, LINE * len(lines)), _PAPER)
    draw = ImageDraw.Draw(part)
    for number, line in enumerate(lines):
        draw.text((0, number * LINE), line, fill=_INK, font=font())
    return part


def _text(text: str, side: int) -> Image:
    """A text in a frame; of a very long one the beginning, and how much is left out."""
    from PIL import Image, ImageDraw

    lines = wrapped(text, side - 12) if text.strip() else ["(empty)"]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"({len(lines) - MOST_LINES + 1} more lines)"]
    words = _lines(lines, side - 12)
    part = Image.new("RGB", (side, words.height + 12), _PAPER)
    part.paste(words, (6, 6))
    ImageDraw.Draw(part).rectangle((0, 0, side - 1, part.height - 1), outline=_FRAME)
    return part


def _scaled(content: Image, side: int) -> Image:
    from PIL import Image

    picture = to_rgb(content)
    scale = side / max(picture.size)
    width, height = (max(1, round(s * scale)) for s in picture.size)
    how = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BICUBIC
    return picture.resize((width, height), how)


def _key(key: Key, side: int) -> Image:
    """A line of a legend: a swatch, a name, and a number at the right where both fit."""
    from PIL import Image, ImageDraw

    left = SWATCH + 6 if key.color is not None else 0
    value = drawable(key.value)
    taken = font().getlength(value)
    lines = wrapped(key.name, max(side - left, LINE))
    beside = font().getlength(lines[-1]) + 4 + taken <= side - left
    part = Image.new("RGB", (side, LINE * (len(lines) + (bool(value) and not beside))), _PAPER)
    draw = ImageDraw.Draw(part)
    if key.color is not None:
        draw.rectangle((0, 3, SWATCH, 3 + SWATCH), fill=key.color, outline=_FRAME)
    for number, line in enumerate(lines):
        draw.text((left, 2 + number * LINE), line, fill=_INK, font=font())
    draw.text((side - taken, part.height - LINE + 2), value, fill=_PALE, font=font())
    return part
