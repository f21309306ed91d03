"""Pictures for people: values side by side on one sheet, each under its title."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MARGIN, TITLE = 8, 18
_INK, _PAPER, _FRAME = (20, 20, 20), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Cell:
    """One thing to show: a picture or a text, with a line above it."""

    title: str
    content: Image | str


def contact_sheet(cells: Sequence[Cell], *, side: int = 224, columns: int = 5) -> Image:
    """All cells on one white sheet.

    Units:
        side: pixels of a cell; pictures are scaled to fit and keep their shape
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    step_x, step_y = side + MARGIN, side + TITLE + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, max(rows, 1) * step_y + MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        x, y = MARGIN + (i % columns) * step_x, MARGIN + (i // columns) * step_y
        draw.text((x, y), _fitting(cell.title, side), fill=_INK)
        _place(sheet, draw, cell.content, (x, y + TITLE), side)
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

    picture = content.convert("RGB")
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
