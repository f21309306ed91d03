"""What the demo searches, and what it asks for: the user's photos, or those that ship.

`photos/` beside this file holds photographs under free licences, each with a caption of ours, its
author, licence and source in `captions.jsonl`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_whole
from fourm_lite.modalities.pictures import open_picture, png
from fourm_lite.photos.item import FileContent, Item
from fourm_lite.photos.records import ENDINGS, LIST, Record, read_caption_list
from fourm_lite.photos.sources import folder_items

if TYPE_CHECKING:
    from PIL.Image import Image

SHIPPED_PHOTOS = "photos"
EXAMPLES = ("a dog runs through the grass", "two people at the beach", "a red flower")
"""What is asked of photos that are not known."""
ANSWERED = 3


def make_gallery(photos: Path | None, folder: Path, *, num_drawings: int = 0) -> Path:
    """A folder of pictures: `photos` itself, or `folder` with copies of the photos that ship.

    Args:
        photos: the user's folder, which is only read; None for the photos that ship
        folder: where copies of the photos that ship go
        num_drawings: how many of `drawings` are added to them

    Raises:
        ConfigError: `photos` is no folder, or holds no picture
    """
    if photos is not None:
        if not photos.is_dir():
            raise ConfigError(f"--photos expects a folder with pictures, there is none at {photos}")
        if not pictures(photos):
            known = ", ".join(sorted(ENDINGS))
            raise ConfigError(
                f"--photos expects a folder with pictures, {photos} holds none; known endings: "
                f"{known}"
            )
        return photos
    for source in files("fourm_lite.demo").joinpath(SHIPPED_PHOTOS).iterdir():
        write_whole(folder / source.name, source.read_bytes(), sync=False)
    for drawing in drawings(num_drawings):
        write_whole(folder / drawing.name, png(drawing.picture), sync=False)
    return folder


def shipped_pictures(count: int = 12) -> list[Image]:
    """Some of the photos that ship, opened."""
    place = files("fourm_lite.demo").joinpath(SHIPPED_PHOTOS)
    names = sorted(f.name for f in place.iterdir() if f.name.endswith(".jpg"))
    return [open_picture(place.joinpath(name).read_bytes()) for name in names[:count]]


def pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, as an index finds them."""
    items = (item for item in folder_items(folder, tars=False) if isinstance(item, Item))
    return sorted(item.read.path for item in items if isinstance(item.read, FileContent))


def shipped_records(gallery: Path) -> dict[str, Record]:
    """What is known of each photo of a gallery that `make_gallery` filled, by its file's name."""
    return {Path(str(r.image)).name: r for r in read_caption_list(gallery / LIST)}


def credit(fields: Mapping[str, Any]) -> str:
    """Author and licence of a photo that ships, as a page must name them."""
    return f"{fields['author']}, {fields['licence']}"


@dataclass(frozen=True)
class Questions:
    """What the demo asks in words.

    Args:
        answered: each has its own photo as the first hit
        failed: the words whose photo comes last of all, and its rank; None where all are answered
    """

    answered: tuple[str, ...]
    failed: tuple[str, int] | None = None


def choose_questions(captions: Sequence[str], scores: Any) -> Questions:
    """Chooses captions by a rule, not by hand.

    Answered are those whose photo comes first with the largest lead over the second hit; failed is
    the one whose photo has the worst rank.

    Shapes:
        scores: float[captions, photos], the photo of a caption in its own place
    """
    table = np.asarray(scores, np.float64)
    own = np.diagonal(table)
    others = np.where(np.eye(len(table), dtype=bool), -np.inf, table)
    lead, ranks = own - others.max(axis=1), 1 + (others >= own[:, None]).sum(axis=1)
    best = [int(i) for i in np.argsort(-lead, kind="stable")[:ANSWERED] if lead[i] > 0]
    worst = int(ranks.argmax())
    failed = (captions[worst], int(ranks[worst])) if ranks[worst] > 1 else None
    return Questions(tuple(captions[i] for i in best), failed)


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
