"""Pictures as files: opened safely, upright, in the channels that are wanted, cut and resized.

Whatever a folder of photos holds (CMYK, 16 bits, palettes, transparency, animations, EXIF rotation)
becomes plain pixels or an error that says why not. Cutting and resizing are Pillow's, so that the
pixels equal those that the published models were trained on. Imports Pillow when it is used.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import FourMError
from fourm_lite.modalities.codec_types import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Floats = npt.NDArray[np.float32]

MAX_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB; Pillow warns from here on."""

ENDINGS = "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff ppm pgm pbm pnm avif jp2"
SUFFIXES = frozenset("." + ending for ending in ENDINGS.split())
"""How the names of picture files end."""

# Readers that start other programs (EPS) or that nobody photographs with are left out.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")

_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_WHITE = (255, 255, 255)


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The first frame of a picture file, upright and decoded, in its own mode.

    Raises:
        FourMError: the bytes are no picture, a broken one, or one with too many pixels
    """
    try:
        picture = _open(data, max_pixels)
        picture.load()
        return upright(picture)
    except FourMError:
        raise
    # Decoders raise almost anything on broken bytes: OSError, SyntaxError, ValueError, EOFError...
    except Exception as error:
        raise FourMError(
            f"this picture file is broken or cut off ({type(error).__name__}: {error}); "
            "replace it or leave it out"
        ) from error


def open_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """A picture file as upright RGB: the one way to open photos for models, indexes and pages.

    Two ways to open a file are two different embeddings of it. Of an animation the first frame
    counts; what is transparent is white.

    Raises:
        FourMError: the bytes are no picture, are cut short, or hold too many pixels
    """
    picture = open_picture(data, max_pixels=max_pixels)
    try:
        return to_rgb(picture)
    except (OSError, ValueError, TypeError) as error:
        raise FourMError(f"this picture has no colours that are known: {error}") from error


def thumbnail(picture: Image, side: int) -> Image:
    """A copy whose longer side is at most `side`."""
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def picture_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture file as it is shown, read from its header.

    Raises:
        FourMError: the bytes are no picture, or one with too many pixels
    """
    picture = _open(data, max_pixels)
    width, height = picture.size
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def _open(data: bytes, max_pixels: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise FourMError("expected a picture file, got 0 bytes; leave the file out")
    try:
        picture = Image.open(io.BytesIO(data), formats=_readers())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FourMError(_too_large(str(error), max_pixels)) from error
    except UnidentifiedImageError as error:
        raise FourMError(
            f"expected a picture ({', '.join(FORMATS)}), got {len(data)} bytes that are none; "
            "convert the file or leave it out"
        ) from error
    except Exception as error:
        raise FourMError(
            f"the header of this picture file is broken ({type(error).__name__}: {error})"
        ) from error
    if picture.width * picture.height > max_pixels:
        raise FourMError(_too_large(f"{picture.width} x {picture.height} pixels", max_pixels))
    return picture


@functools.cache
def _readers() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_large(what: str, max_pixels: int) -> str:
    return (
        f"expected a picture of at most {max_pixels} pixels, got {what}; "
        "shrink it, or raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    )


def _orientation(picture: Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1


def upright(picture: Image) -> Image:
    """A picture turned as its EXIF rotation says, where it has one."""
    from PIL import ImageOps

    if not 2 <= _orientation(picture) <= 8:
        return picture
    return ImageOps.exif_transpose(picture) or picture


def to_rgb(picture: Image, background: tuple[int, int, int] = _WHITE) -> Image:
    """A picture of any mode as 8-bit RGB; what is transparent shows the background."""
    from PIL import Image

    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if is_deep(picture):
        eight = np.round(deep_plane(picture) / 257).astype(np.uint8)
        return Image.fromarray(eight).convert("RGB")
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return picture.convert("RGB")


def to_gray(picture: Image, background: tuple[int, int, int] = _WHITE) -> Image:
    """A picture of any mode as 8-bit grey."""
    return picture if picture.mode == "L" else to_rgb(picture, background).convert("L")


def is_deep(picture: Image) -> bool:
    """Whether a picture holds more than 8 bits a pixel in one channel."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def deep_plane(picture: Image) -> Floats:
    """One channel in steps of 1/65535; 8-bit pictures are spread over the same range.

    Shapes:
        returns: float32[H, W], 0..65535
    Raises:
        FourMError: the numbers do not fit into 16 bits, or are no whole numbers
    """
    if not is_deep(picture):
        return np.asarray(to_gray(picture), dtype=np.float32) * 257
    plane = np.asarray(picture).astype(np.float64)
    if plane.size and not (plane.min() >= 0 and plane.max() <= 65535):
        raise FourMError(
            f"expected 16-bit numbers 0..65535, got {plane.min()}..{plane.max()}; "
            "scale the file, or store it as .npy"
        )
    if picture.mode == "F" and plane.size and plane.max() <= 1:
        raise FourMError(
            "expected 16-bit numbers, got a floating-point picture in 0..1; store it as .npy"
        )
    return plane.astype(np.float32)


def cut(picture: Image, crop: Crop | None, resample: Resample = "bicubic") -> Image:
    """The part of a picture that a crop names, resized and mirrored as it says.

    Raises:
        ShapeError: the crop leaves the picture
    """
    from PIL import Image

    if crop is None:
        return picture
    crop.check_inside(picture.height, picture.width)
    right, bottom = crop.left + crop.width, crop.top + crop.height
    part = picture.crop((crop.left, crop.top, right, bottom))
    height, width = crop.output_size
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling[resample.upper()])
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.hflip else part


def cut_plane(plane: Floats, crop: Crop | None, resample: Resample) -> Floats:
    """`cut` for one channel of float32 numbers.

    Shapes:
        plane: float32[H, W]
    """
    from PIL import Image

    if crop is None:
        return plane
    return np.asarray(cut(Image.fromarray(plane), crop, resample), dtype=np.float32)


def png(picture: Any) -> bytes:
    """A picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
