"""Crops of photos: one crop and one flip a sample, for every modality of it; and two photos in one.

Crop 0 is always the centre crop without a flip, so that a plain evaluation reads crop 0.
A crop of a token file is a row of its `crop_settings`: top, left, height, width, flip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError, FourMError, ShapeError, check_most
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.modalities.spec import Crop
from fourm_lite.reading.regular import read_photo

MAX_SIDE = 1 << 14
"""Pixels of what a network reads."""


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """How crops are drawn.

    Units:
        size: side of the result in pixels
        scale: smallest and largest share of the area of the picture
        ratio: narrowest and widest width / height
        hflip: probability of a mirror image
    """

    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        """Refuses ranges that hold nothing."""
        check_most(MAX_SIDE, size=self.size)
        if self.size < 1 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"need size >= 1 and 0 < scale[0] <= scale[1] <= 1, got {self}")
        if not 0 < self.ratio[0] <= self.ratio[1] or not 0 <= self.hflip <= 1:
            raise ConfigError(f"need 0 < ratio[0] <= ratio[1] and 0 <= hflip <= 1, got {self}")

    def draw_ratio(self, rng: np.random.Generator) -> float:
        """Width over height; as often twice as wide as twice as high."""
        return math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))


def center_crop(height: int, width: int, size: int | None = None) -> Crop:
    """The largest square in the middle; the picture's size is left out, as of rows of settings."""
    return replace(Crop.center(height, width, size), whole=None)


def random_crop(height: int, width: int, policy: CropPolicy, rng: np.random.Generator) -> Crop:
    """A rectangle of random area, shape and place; the center crop if ten draws do not fit.

    Source:
        Going Deeper with Convolutions (Szegedy et al. 2015), "Inception crops"
    """
    flip = bool(rng.random() < policy.hflip)
    for _ in range(10):
        area = height * width * rng.uniform(*policy.scale)
        ratio = policy.draw_ratio(rng)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Crop(top=top, left=left, height=h, width=w, hflip=flip, size=policy.size)
    return replace(center_crop(height, width, policy.size), hflip=flip)


def crops(
    height: int, width: int, count: int, policy: CropPolicy, rng: np.random.Generator
) -> list[Crop]:
    """`count` crops of one picture, the first the centre crop."""
    first = center_crop(height, width, policy.size)
    return [first] + [random_crop(height, width, policy, rng) for _ in range(count - 1)]


def to_settings(crop: Sequence[Crop]) -> npt.NDArray[np.int64]:
    """Crops as rows: int64[n, 5] of top, left, height, width, flip."""
    rows = [[c.top, c.left, c.height, c.width, int(c.hflip)] for c in crop]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def from_settings(
    settings: npt.NDArray[Any], size: int | tuple[int, int] | None = None
) -> list[Crop]:
    """The crops behind `to_settings`.

    Raises:
        ShapeError: not [n, 5]
    """
    if settings.ndim != 2 or settings.shape[1] != 5:
        raise ShapeError(
            "crop_settings must be [n, 5] (top, left, height, width, flip), got "
            f"{list(settings.shape)}"
        )
    return [
        Crop(top=int(t), left=int(x), height=int(h), width=int(w), hflip=bool(f), size=size)
        for t, x, h, w, f in settings
    ]


def scaled(crop: Crop, height: int, width: int, *, of: tuple[int, int]) -> tuple[float, ...]:
    """The same rectangle on a map of another size: (left, top, right, bottom) in its cells."""
    down, right = height / of[0], width / of[1]
    return tuple(at * by for at, by in zip(crop.box, (right, down, right, down), strict=True))


def cut_image(image: Any, crop: Crop, *, nearest: bool = False) -> Any:
    """A PIL picture cut, mirrored and resized as the crop says; labels take `nearest`."""
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    height, width = crop.output_size
    out = image.resize((width, height), how, box=crop.box)
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.hflip else out


def cut_pixels(image: Any, crop: Crop) -> Tensor:
    """What `cut_image` gives of an RGB picture, as bytes: uint8[3, H, W].

    Unusual: torch's kernel for bytes takes a quarter of Pillow's time. Values differ by two of 255
    at most, but for the rim of an enlarged crop: Pillow lets the pixels around it reach in.

    Raises:
        ShapeError: the crop leaves the picture
    """
    crop.check_inside(image.height, image.width)
    rows = torch.from_numpy(np.array(image.crop(crop.box))).permute(2, 0, 1)[None]
    made = F.interpolate(rows, crop.output_size, mode="bicubic", antialias=True)[0]
    return (made.flip(-1) if crop.hflip else made).contiguous()


def cut_labels(
    labels: npt.NDArray[Any], crop: Crop, *, of: tuple[int, int], size: int
) -> npt.NDArray[Any]:
    """A label map of any size cut as its photo of size `of` is, by the nearest cell.

    Shapes:
        labels: int[h, w] -> int[size, size]
    """
    left, top, right, bottom = scaled(crop, labels.shape[0], labels.shape[1], of=of)
    centers = (np.arange(size) + 0.5) / size
    rows = np.clip((top + centers * (bottom - top)).astype(int), 0, labels.shape[0] - 1)
    cols = np.clip((left + centers * (right - left)).astype(int), 0, labels.shape[1] - 1)
    out = labels[rows[:, None], cols[None, :]]
    return np.ascontiguousarray(out[:, ::-1]) if crop.hflip else out


KEY = "mixed_with"


@dataclass(frozen=True)
class Mix:
    """The second photo of a mixture, and how the two are joined.

    Units:
        crops: of the first and of the second photo, both to one size
        share: of the second photo in every pixel; 1 where it is pasted
        box: left, top, right, bottom in pixels of the result, where the second photo is pasted; ()
            where the two are blended
    """

    image: Path
    crops: tuple[Crop, Crop]
    share: float = 1.0
    box: tuple[int, ...] = ()

    def join(self, first: Any) -> Any:
        """The mixture as a PIL picture, of the first photo as it lies in its file.

        Raises:
            FourMError: the second photo cannot be read
            ShapeError: a crop leaves its photo
        """
        from PIL import Image

        photos = (first, open_rgb(read_photo(self.image)))
        for photo, crop in zip(photos, self.crops, strict=True):
            crop.check_inside(photo.height, photo.width)
        a, b = (cut_image(photo, crop) for photo, crop in zip(photos, self.crops, strict=True))
        if not self.box:
            return Image.blend(a, b, self.share)
        a.paste(b.crop(self.box), self.box)
        return a

    def row(self, folder: Path) -> dict[str, Any]:
        """As a line of a list in `folder` says it."""
        size, settings = self.crops[0].output_size, to_settings(self.crops).tolist()
        how: dict[str, Any] = {"box": list(self.box)} if self.box else {"share": self.share}
        return {"file": relative(folder, self.image), "size": list(size), "crops": settings, **how}

    @classmethod
    def read(cls, row: Any, folder: Path) -> Mix:
        """What `row` wrote.

        Raises:
            FourMError: it says no mixture
        """
        try:
            height, width = (int(n) for n in row["size"])
            first, second = from_settings(np.array(row["crops"]), (height, width))
            box = tuple(int(n) for n in row.get("box", ()))
            made = cls(folder / row["file"], (first, second), float(row.get("share", 1.0)), box)
        except (KeyError, TypeError, ValueError, AttributeError, ShapeError) as error:
            raise FourMError(
                f"{KEY!r} says no mixture ({type(error).__name__}: {error}); expected `file`, "
                f"`size`, two `crops`, and `share` or `box`, got {row!r}"
            ) from error
        inside = len(box) == 4 and 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
        if not 0 <= made.share <= 1 or (box and not inside):
            raise FourMError(
                f"{KEY!r}: expected a share within 0..1 or a box within {height}x{width}, got "
                f"{row!r}"
            )
        return made


def relative(folder: Path, path: Path) -> str:
    """The path as a file in `folder` names it."""
    return os.path.relpath(path.resolve(), folder.resolve())


def mix_of(row: Mapping[str, Any], folder: Path) -> Mix | None:
    """The mixture that a line of a list names; None for a plain photo.

    Raises:
        FourMError: it says no mixture
    """
    return None if row.get(KEY) is None else Mix.read(row[KEY], folder)
