"""Pictures for people: values side by side on one sheet, each under its title."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourm_lite.modalities.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MARGIN, LINE = 8, 18
_INK, _PAPER, _FRAME = (20, 20, 20), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Cell:
    """One thing to show: a picture or a text, with a line or several above it."""

    title: str
    content: Image | str


def contact_sheet(
    cells: Sequence[Cell], *, side: int = 224, columns: int = 5, heading: Sequence[str] = ()
) -> Image:
    """All cells on one white sheet, under the lines of a heading.

    Units:
        side: pixels of a cell; pictures are scaled to fit and keep their shape
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(columns, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    title = LINE * max((cell.title.count("\n") + 1 for cell in cells), default=1)
    step_x, step_y = side + MARGIN, side + title + MARGIN
    width = max(columns * step_x, (side + MARGIN) * (3 if heading else 1)) + MARGIN
    top = MARGIN + LINE * len(heading)
    sheet = Image.new("RGB", (width, top + rows * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((MARGIN, MARGIN // 2 + number * LINE), _fitting(line, width), fill=_INK)
    for i, cell in enumerate(cells):
        x, y = MARGIN + (i % columns) * step_x, top + (i // columns) * step_y
        for number, line in enumerate(cell.title.split("\n")):
            draw.text((x, y + number * LINE), _fitting(line, side), fill=_INK)
        _place(sheet, draw, cell.content, (x, y + title), side)
    return sheet


def _place(
    sheet: Image, draw: ImageDraw, content: Image | str, corner: tuple[int, int], side: int
) -> None:
    x, y = corner
    if isinstance(content, str):
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_FRAME)
        width = max(8, side // 7)
        lines = textwrap.wrap(_drawable(content), width)[: side // 12 - 1] or ["(empty)"]
        draw.multiline_text((x + 6, y + 6), "\n".join(lines), fill=_INK, spacing=2)
        return
    from PIL import Image as Images

    picture = to_rgb(content)
    scale = side / max(picture.size)
    size = tuple(max(1, round(s * scale)) for s in picture.size)
    how = Images.Resampling.NEAREST if scale >= 4 else Images.Resampling.BICUBIC
    picture = picture.resize((size[0], size[1]), how)
    sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))


def _drawable(text: str) -> str:
    """Pillow's built-in font may know Latin letters alone; others are shown as question marks."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _fitting(title: str, side: int) -> str:
    limit = max(4, side // 6)
    title = _drawable(title)
    return title if len(title) <= limit else title[: limit - 1] + "~"
