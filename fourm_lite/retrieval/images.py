"""Pictures for galleries, queries and reports: the codecs' own way of opening, as RGB.

Two ways to open a file are two different embeddings of it, so there is one, in
``modalities.pictures``; here are the names of files that it is tried on, and thumbnails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourm_lite.errors import FourMError
from fourm_lite.modalities import pictures

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = pictures.MAX_PIXELS
ENDINGS = "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff ppm pgm pbm pnm avif jp2"
SUFFIXES = frozenset("." + ending for ending in ENDINGS.split())


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as upright RGB; of an animation the first frame, on white where transparent.

    Raises:
        FourMError: the bytes are no picture, are cut short, or hold too many pixels
    """
    picture = pictures.open_picture(data, max_pixels=max_pixels)
    try:
        return pictures.to_rgb(picture)
    except (OSError, ValueError, TypeError) as error:
        raise FourMError(f"this picture has no colours that are known: {error}") from error


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is at most ``side``."""
    small = image.copy()
    small.thumbnail((side, side))
    return small
