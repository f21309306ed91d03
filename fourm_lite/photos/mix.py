"""A photo that is two: what a line of a list says of the second one and how they are joined."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.codec_types import Crop
from fourm_lite.modalities.crops import cut_image, from_settings, to_settings
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.reading.regular import read_photo

if TYPE_CHECKING:
    pass

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
    """The mixture that a line of a list tells of, or None: it is a photo.

    Raises:
        FourMError: it says no mixture
    """
    return None if row.get(KEY) is None else Mix.read(row[KEY], folder)
