"""Pictures drawn from words: shapes in colours and places, each with its caption.

They need no file and no licence, and what they show is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (33, 96, 196),
    "yellow": (244, 196, 48),
    "purple": (128, 64, 160),
    "orange": (240, 128, 32),
}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = {"white": (245, 245, 240), "grey": (150, 150, 150), "black": (24, 24, 28)}
PLACES = {"on the left": 0.28, "in the middle": 0.5, "on the right": 0.72}


class Drawing(NamedTuple):
    """A picture with its name and what it shows."""

    name: str
    caption: str
    picture: Image


def drawings(count: int, *, size: int = 224, seed: int = 0) -> Iterator[Drawing]:
    """Different drawings, always the same ones for a seed."""
    rng = random.Random(seed)
    every = [(c, s, g, p) for c in COLORS for s in SHAPES for g in GROUNDS for p in PLACES]
    for number, (color, shape, ground, place) in enumerate(rng.sample(every, min(count, 216))):
        caption = f"a {color} {shape} {place} of a {ground} picture"
        picture = draw(color, shape, ground, PLACES[place], size=size, jitter=rng.random())
        yield Drawing(f"drawing_{number:03d}.png", caption, picture)


def draw(color: str, shape: str, ground: str, x: float, *, size: int, jitter: float = 0.5) -> Image:
    """One shape on a plain ground."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    r = size * (0.14 + 0.08 * jitter)
    cx, cy, fill = x * size, size * (0.4 + 0.2 * jitter), COLORS[color]
    if shape == "circle":
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "square":
        pen.rectangle((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "triangle":
        pen.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=fill)
    else:
        pen.rectangle((cx - r, cy - r / 3, cx + r, cy + r / 3), fill=fill)
        pen.rectangle((cx - r / 3, cy - r, cx + r / 3, cy + r), fill=fill)
    return picture
