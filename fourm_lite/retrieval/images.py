"""One way from the bytes of a picture file to upright RGB, used for galleries and queries alike.

Two ways to open a picture are two different embeddings of it. So orientation, transparency, depth
and colour space are settled here, once; what cannot be opened is refused with the reason.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from fourm_lite.errors import FourMError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970
"""Above this a file is taken for a decompression bomb: 512 MiB as RGB, where Pillow raises too."""

PICTURES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm avif jp2 ico"
SUFFIXES = frozenset("." + ending for ending in PICTURES.split())


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as upright RGB; of an animation the first frame.

    EXIF orientation is applied, transparency laid on white, 16 bits scaled to 8.
    Raises:
        FourMError: the bytes are no picture, are cut short, or hold too many pixels
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise FourMError("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd but readable files
            image: Image.Image = Image.open(io.BytesIO(data))
            _check_size(image.size, max_pixels)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise FourMError(f"not a picture that Pillow knows (begins with {data[:8]!r})") from None
    except Image.DecompressionBombError:
        raise FourMError(f"more than {max_pixels} pixels; taken for a decompression bomb") from None
    except FourMError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise FourMError(f"cannot be decoded: {error}") from error


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is at most ``side``."""
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise FourMError(
            f"{width}x{height} pixels are more than {max_pixels}; taken for a decompression bomb"
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        ink = image.convert("RGBA")
        paper = Image.new("RGBA", ink.size, "white")
        return Image.alpha_composite(paper, ink).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: Any) -> Any:
    """Deep grey as uint8: whole numbers above 255 are 16 bits, floats up to 1 are 0..1."""
    top = float(values.max(initial=0))
    if values.dtype.kind == "f":
        scaled = values * 255.0 if top <= 1 else values
    else:
        deep = values.dtype == np.uint16 or top > 255
        scaled = values / 257.0 if deep else values
    return np.clip(np.nan_to_num(np.round(scaled)), 0, 255).astype(np.uint8)
