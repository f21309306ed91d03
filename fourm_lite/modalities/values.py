"""Structured raw values: boxes, people, palettes, masks found at a point.

They are what the sequence modalities say in words; `tokenization.words.sequences` turns them into
text and back, `modalities.value_codecs` reads and writes their files. Plain numbers, no tensors;
what tokenizers make of the tokens inside (masks, joints) is an addition that no text says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from colorsys import rgb_to_hls
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import FourMError
from fourm_lite.modalities.spec import Crop

Metadata = dict[str, float]
"""What is known of a picture as a whole: the name of a field -> its number."""


@dataclass(frozen=True)
class Box:
    """One detected thing.

    Units:
        xmin, ymin, xmax, ymax: fractions of the picture's width and height
        score: the detector's confidence in 0..1
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    name: str = ""
    score: float = 1.0

    @property
    def area(self) -> float:
        """Fraction of the picture that it covers; 0 for a box turned inside out."""
        return max(self.xmax - self.xmin, 0.0) * max(self.ymax - self.ymin, 0.0)


@dataclass(frozen=True)
class Person:
    """One body, after 4M's human poses; `None` where generated text left a group out.

    Units:
        box: (xmin, ymin, xmax, ymax), fractions of the picture
        pose: 8 tokens of the pose tokenizer, 0..1023
        rotation: 9 entries of the body's rotation matrix, -1..1
        camera: 3 numbers, -1..19
        shape: 10 SMPL shape numbers, -3..3
        joints: what the pose tokenizer makes of `pose`: 23 rotation matrices, 9 numbers each
    """

    box: tuple[float, ...] | None = None
    pose: tuple[int, ...] | None = None
    rotation: tuple[float, ...] | None = None
    camera: tuple[float, ...] | None = None
    shape: tuple[float, ...] | None = None
    joints: tuple[tuple[float, ...], ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Segment:
    """One thing cut out by SAM: its box, and the tokens of the mask within the box.

    Units:
        box: (xmin, ymin, xmax, ymax), pixels of a 224 x 224 picture
        tokens: 16 tokens of the mask tokenizer, 0..1023
        mask: what the mask tokenizer makes of them: bool[H, W], spread over the box
    """

    box: tuple[int, int, int, int]
    tokens: tuple[int, ...]
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class PointQuery:
    """The things found at one point; none is an answer too.

    Units:
        x, y: pixels of a 224 x 224 picture
    """

    x: int
    y: int
    segments: tuple[Segment, ...] = ()


Color = tuple[int, int, int]
"""Red, green and blue in 0..255."""

_HUES = (
    (15, "red"), (40, "orange"), (68, "yellow"), (160, "green"), (195, "turquoise"), (255, "blue"),
    (290, "violet"), (340, "pink"), (361, "red"),
)  # fmt: skip
_GREYISH = 30  # levels between the strongest and the weakest channel


def color_name(color: Color) -> str:
    """A colour in words.

    >>> color_name((20, 40, 120)), color_name((90, 60, 40)), color_name((250, 250, 250))
    ('dark blue', 'brown', 'white')
    """
    hue, light, _ = rgb_to_hls(*(channel / 255 for channel in color))
    if light < 0.1 or light > 0.93:
        return "black" if light < 0.5 else "white"
    if max(color) - min(color) < _GREYISH:
        name = "grey"
    else:
        name = next(name for end, name in _HUES if hue * 360 < end)
    if name == "orange" and light < 0.5:
        return "dark brown" if light < 0.2 else "brown"
    return f"dark {name}" if light < 0.33 else f"light {name}" if light > 0.7 else name


def as_colors(palette: Iterable[Iterable[float]]) -> tuple[Color, ...]:
    """Colours as whole numbers.

    Units:
        palette: whole numbers 0..255; or floats within 0..1, which are shares of full brightness
    Raises:
        FourMError: a colour is something else
    """
    colors = [tuple(color) for color in palette]
    flat = [channel for color in colors for channel in color]
    shares = (
        bool(flat)
        and all(hasattr(c, "is_integer") and 0 <= c <= 1 for c in flat)
        and any(not isinstance(c, int) for c in flat)
    )
    whole = [round(float(c) * 255) if shares else c for c in flat]
    if any(len(c) != 3 for c in colors) or not all(0 <= c <= 255 and c == int(c) for c in whole):
        raise FourMError(
            "a colour is three whole numbers in 0..255, or three floats in 0..1, got "
            f"{str(colors)[:120]}"
        )
    channels = [int(c) for c in whole]
    return tuple(zip(channels[0::3], channels[1::3], channels[2::3], strict=True))


def crop_boxes(
    boxes: Iterable[Box], crop: Crop | None, *, min_visibility: float = 0.0
) -> tuple[Box, ...]:
    """The boxes as seen through a crop; those left without area are dropped.

    Units:
        min_visibility: fraction of a box that must lie inside the crop for it to be kept
    Raises:
        FourMError: the crop does not know the size of the uncut picture
    """
    if crop is None:
        return tuple(boxes)
    if crop.whole is None:
        raise FourMError(
            "boxes are fractions of the whole picture: give the crop its size, "
            "Crop(..., whole=(height, width))"
        )
    height, width = crop.whole
    kept = []
    for box in boxes:
        moved = _through(box, crop, height, width)
        seen = replace(
            moved,
            xmin=_unit(moved.xmin),
            ymin=_unit(moved.ymin),
            xmax=_unit(moved.xmax),
            ymax=_unit(moved.ymax),
        )
        if seen.area > 0 and seen.area >= min_visibility * moved.area:
            kept.append(seen)
    return tuple(kept)


def _through(box: Box, crop: Crop, height: int, width: int) -> Box:
    xmin, xmax = ((x * width - crop.left) / crop.width for x in (box.xmin, box.xmax))
    ymin, ymax = ((y * height - crop.top) / crop.height for y in (box.ymin, box.ymax))
    if crop.hflip:
        xmin, xmax = 1 - xmax, 1 - xmin
    return replace(box, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)


def _unit(x: float) -> float:
    return 0.0 if math.isnan(x) else min(max(x, 0.0), 1.0)
