"""Maps of class numbers: their codec, colours, legend, and the names of published classes."""

from __future__ import annotations

import math
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.legend import Key
from fourm_lite.modalities.pictures import MAX_PIXELS, cut, open_picture, png
from fourm_lite.modalities.spec import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

_COCO = """
none, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza,
donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush, banner, blanket, bridge, cardboard, counter, curtain, door,
wooden floor, flower, fruit, gravel, house, light, mirror, net, pillow, platform, playing field,
railroad, river, road, roof, sand, sea, shelf, snow, stairs, tent, towel, brick wall, stone wall,
tiled wall, wooden wall, water, window blind, window, tree, fence, ceiling, sky, cabinet, table,
floor, pavement, mountain, grass, dirt, paper, food, building, rock, wall, rug
"""
COCO_PANOPTIC: tuple[str, ...] = tuple(" ".join(_COCO.split()).split(", "))
"""Of 4M's class maps: the 80 things and 53 kinds of stuff of COCO panoptic, in its order."""

_NONE = (0.9, 0.9, 0.9)  # the colour of class 0


@dataclass(frozen=True, kw_only=True)
class LabelCodec:
    """Maps of class numbers, one channel; class 0 is "none".

    Units:
        num_labels: classes, "none" counted
        offset: added to the file's numbers, modulo 256; 1 makes 4M's void 255 into class 0
        names: of the classes, where they are known
    Shapes:
        read: int64[H, W]
    """

    num_labels: int = 134
    offset: int = 1
    names: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The classes of a one-channel picture file; a palette's numbers count, not its colours."""
        return self.from_picture(open_picture(data, max_pixels=self.max_pixels), crop)

    def from_picture(self, picture: Image, crop: Crop | None = None) -> Tensor:
        """The classes of a picture that is open already."""
        if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
            raise FourMError(
                f"expected a label map of one channel of whole numbers, got a picture of mode "
                f"{picture.mode}; store class numbers, not colours"
            )
        numbers = torch.from_numpy(np.array(cut(picture, crop, "nearest")).astype(np.int64))
        moved = numbers + self.offset
        return self._checked(torch.where(numbers < 256, moved % 256, moved))

    def from_numbers(self, numbers: Tensor, crop: Crop | None = None) -> Tensor:
        """The classes of a map int[H, W] that numbers them as the values do: no offset."""
        from PIL import Image

        labels = self._checked(_as_map(numbers))
        if crop is None or (tuple(labels.shape) == crop.output_size and not crop.hflip):
            return labels
        part = cut(Image.fromarray(labels.numpy().astype(np.int32)), crop, "nearest")
        return torch.from_numpy(np.array(part).astype(np.int64))

    def write(self, value: Tensor) -> bytes:
        """A one-channel PNG file of the classes."""
        from PIL import Image

        numbers = (self._checked(_as_map(value)) - self.offset) % 256
        return png(Image.fromarray(numbers.numpy().astype(np.uint8)))

    def picture(self, value: Tensor) -> Image:
        """The classes in colours, "none" in light grey."""
        return colored(self._checked(_as_map(value)).numpy(), class_colors(self.num_labels))

    def legend(self, value: Tensor) -> tuple[Key, ...]:
        """The classes of a map with their colours and shares, the largest first."""
        return class_legend(self._checked(_as_map(value)), self.num_labels, self.names)

    def _checked(self, labels: Tensor) -> Tensor:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_labels:
            raise FourMError(
                f"expected classes 0..{self.num_labels - 1}, got {int(labels.min())}.."
                f"{int(labels.max())}; does the file number its classes differently?"
            )
        return labels


def _as_map(value: Tensor) -> Tensor:
    labels = value.detach().cpu()
    if labels.ndim == 3 and len(labels) == 1:
        labels = labels[0]
    if labels.ndim != 2 or labels.is_floating_point():
        raise ShapeError(f"expected int64[H, W], got {value.dtype}{list(value.shape)}")
    return labels.long()


def class_colors(count: int) -> npt.NDArray[np.uint8]:
    """Colours that tell classes apart, the first one light grey.

    Shapes:
        returns: uint8[count, 3]
    """
    turn = (math.sqrt(5) - 1) / 2  # the golden angle spreads any number of hues evenly
    colors = [
        hsv_to_rgb((k * turn) % 1, 0.55 + 0.15 * (k % 4), 0.65 + 0.11 * (k // 4 % 4))
        for k in range(1, count)
    ]
    return (np.array([_NONE, *colors])[:count] * 255).round().astype(np.uint8)


def class_legend(labels: Tensor, count: int, names: tuple[str, ...] = ()) -> tuple[Key, ...]:
    """The classes that are present with their colours and shares, the largest first.

    Shapes:
        labels: int64[...], below `count`
    """
    colors = class_colors(count).tolist()
    counts = torch.bincount(labels.flatten(), minlength=count).tolist()
    names = (*names, *(f"class {k}" if k else "none" for k in range(len(names), count)))
    present = sorted((k for k, n in enumerate(counts) if n), key=lambda k: -counts[k])
    return tuple(
        Key(names[k], share(counts[k] / labels.numel()), tuple(colors[k])) for k in present
    )


def share(part: float) -> str:
    """A part of a whole in words.

    >>> share(0.256), share(0.001)
    ('26 %', '<1 %')
    """
    return "<1 %" if part < 0.005 else f"{part:.0%}".replace("%", " %")


def colored(numbers: npt.NDArray[np.int64], colors: npt.NDArray[np.uint8]) -> Image:
    """A map of numbers, each in its colour."""
    from PIL import Image

    return Image.fromarray(colors[numbers % len(colors)])
