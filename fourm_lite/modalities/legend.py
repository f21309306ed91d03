"""What explains a picture: keys beside it, and letters in it that fit a width."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont


@dataclass(frozen=True)
class Key:
    """One line of what explains a picture: a colour, what it stands for, and a number in words."""

    name: str
    value: str = ""
    color: tuple[int, int, int] | None = None


@runtime_checkable
class Explains(Protocol):
    """A codec whose pictures need explaining."""

    def legend(self, value: Any) -> tuple[Key, ...]:
        """What stands beside the picture of a value."""
        ...


SIZE = 13
"""Pixels of a letter's height, small and still clear."""


def font(size: int = SIZE) -> FreeTypeFont | ImageFont:
    """The font that comes with Pillow, so that a picture is the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def drawable(text: str) -> str:
    """The text in the letters of the font: accents are left out, other scripts are "?".

    >>> drawable("Ondřej 猫")
    'Ondrej ?'
    """
    bare = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in "“”‘’–—…·" else "?" for c in bare)


def wrapped(text: str, width: int, size: int = SIZE) -> list[str]:
    """Lines that are `width` pixels long at most; a longer word goes on in the next line."""
    lines = []
    measure = font(size).getlength
    for paragraph in drawable(text).split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if measure(longer) <= width:
                line = longer
                continue
            lines += [line] if line else []
            *full, line = _parts(word, width, size)
            lines += full
        lines.append(line)
    return lines


def _parts(word: str, width: int, size: int) -> list[str]:
    """A word in pieces that fit, cut after a hyphen, underline or slash where there is one."""
    parts, measure = [""], font(size).getlength
    for letter in word:
        if parts[-1] and measure(parts[-1] + letter) > width:
            piece = parts.pop()
            kept = max(piece.rfind(mark) for mark in "-_/") + 1 or len(piece)
            parts += [piece[:kept], piece[kept:]]
        parts[-1] += letter
    return parts
