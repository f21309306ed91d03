"""Pictures as files: opened safely, upright, in the channels that are wanted, cut and resized.

Whatever a folder of photos holds (CMYK, 16 bits, palettes, transparency, animations, EXIF rotation)
becomes plain pixels or an error that says why not. `decode` is the one way from whatever a person
has (path, bytes, PIL picture, array, tensor) to RGB on white, and `eight_bits` the one meaning of
each type of number. Cutting and resizing are Pillow's, so that the pixels equal those that the
published models were trained on. Imports Pillow when it is used.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.camera_files import develop, heif_formats, is_raw, reads_raw
from fourm_lite.modalities.spec import Crop
from fourm_lite.reading.regular import read_photo
from fourm_lite.unit import Floats

if TYPE_CHECKING:
    from PIL.Image import Image

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Bytes = npt.NDArray[np.uint8]
PictureSource: TypeAlias = "Image | str | Path | bytes | npt.NDArray[Any] | Tensor"

MAX_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB; Pillow warns from here on."""

MAX_RATIO = 256
"""Of the sides: a thin picture grows as long as its short side is stretched to a network's."""

ENDINGS = "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff ppm pgm pbm pnm avif jp2"
SUFFIXES = frozenset("." + ending for ending in ENDINGS.split())
"""How the names of picture files end."""

# Readers that start other programs (EPS) or that nobody photographs with are left out.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")

# Numbers up to here, in a type that does not say its range, may be of 8, 10 or 12 bits
MAX_OF_12_BITS = 4095

SPARE = 2
"""How many times as many pixels a scaled JPEG has, at least, as a network is shown of it."""

_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_WHITE = (255, 255, 255)


def open_picture(
    data: bytes, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None
) -> Image:
    """The first frame of a picture file, upright and decoded, in its own mode.

    Units:
        short_side: pixels that will do: a JPEG of 2, 4 or 8 times as many is decoded at that
            fraction of its size, in a fraction of the time and memory
    Raises:
        FourMError: the bytes are no picture, a broken one, or one with too many pixels
    """
    try:
        picture = _open(data, max_pixels)
        if short_side is not None:  # of other formats than JPEG this does nothing
            picture.draft(None, (short_side, short_side))
        picture.load()
        return upright(picture)
    except FourMError:
        raise
    # Decoders raise almost anything on broken bytes: OSError, SyntaxError, ValueError, EOFError...
    except Exception as error:
        _raise_short_memory(error)
        raise FourMError(
            f"this picture file is broken or cut off ({type(error).__name__}: {error}); "
            "replace it or leave it out"
        ) from error


def open_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None) -> Image:
    """`decode` of a picture file's bytes: the one way to open photos for models and indexes."""
    return decode(data, max_pixels=max_pixels, short_side=short_side)


def decode(
    source: PictureSource, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None
) -> Image:
    """Whatever holds a picture as upright 8-bit RGB, what is transparent in white.

    Two ways to open a picture are two different embeddings of it. Of an animation the first frame
    counts.

    Shapes:
        source: as `as_picture`
    Units:
        short_side: as `open_picture`
    Raises:
        FourMError: it is no picture, is cut short, has too many pixels, or numbers without a range
        ShapeError: an array has another shape, or numbers that are no pixels
    """
    picture = as_picture(source, max_pixels=max_pixels, short_side=short_side)
    try:
        return to_rgb(picture)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, FourMError):
            raise
        raise FourMError(f"this picture has no colours that are known: {error}") from error


def as_picture(
    source: PictureSource, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None
) -> Image:
    """An upright PIL picture in its own mode from a path, bytes, PIL picture, array or tensor.

    Shapes:
        source: an array [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels; where both fit, an
            array is [H, W, C] and a tensor [C, H, W]. Its numbers as `eight_bits` reads them
    Units:
        short_side: as `open_picture`; what is open already stays as it is
    Raises:
        FourMError: the file is missing or is no picture
        ShapeError: an array has another shape, or numbers that are no pixels
    """
    from PIL import Image

    if isinstance(source, np.ndarray | Tensor):
        return _from_array(source)
    if isinstance(source, bytes):
        return open_picture(source, max_pixels=max_pixels, short_side=short_side)
    try:
        if isinstance(source, Image.Image):
            source.load()
            return upright(source)
        data = read_photo(Path(source).expanduser())
        return open_picture(data, max_pixels=max_pixels, short_side=short_side)
    except Exception as error:  # as in `open_picture`: decoders raise almost anything
        _raise_short_memory(error)
        known = isinstance(source, str | Path | Image.Image)
        advice = "" if known else "; give a path, bytes, a PIL picture, an array or a tensor"
        raise FourMError(
            f"cannot read the picture {str(source)[:200]!r}: {error}{advice}"
        ) from error


def _from_array(values: npt.NDArray[Any] | Tensor) -> Image:
    from PIL import Image

    array = _channels_last(values)
    if array.ndim == 2 and array.dtype == np.uint16:
        return Image.fromarray(array)  # its 16 bits are kept, for depth
    return Image.fromarray(eight_bits(array))


def _channels_last(values: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    usual = 0 if isinstance(values, Tensor) else 2
    if isinstance(values, Tensor):
        values = values.detach().cpu()  # NumPy has no bfloat16
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = values
    places = [p for p in (usual, 2 - usual) if array.ndim == 3 and array.shape[p] in (1, 3, 4)]
    if not array.size or (array.ndim != 2 and not places):
        raise ShapeError(
            f"one picture as an array is [H, W], [H, W, 3] or [3, H, W], with 1, 3 or 4 channels, "
            f"got {list(array.shape)}; give several as several items"
        )
    if array.ndim == 2:
        return np.ascontiguousarray(array)
    pixels = np.ascontiguousarray(np.moveaxis(array, places[0], 2))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def eight_bits(values: npt.NDArray[Any]) -> Bytes:
    """Numbers of any type as 8-bit pixels.

    Units:
        values: bool: no or yes. uint8: 0..255. uint16: 0..65535. Floats in 0..1: black to white.
            Others do not say their range: they are of 16 bits where they need more than 12
    Raises:
        ShapeError: NaN, infinite or negative numbers, or a range that is not known
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind == "u" and size == 1:
        return values
    if kind not in "uif":
        raise ShapeError(f"pixels are numbers, got {values.dtype}")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    is_deep = kind == "u" and size == 2
    if is_deep or (low >= 0 and (MAX_OF_12_BITS < high <= 65535 or high == 0)):
        return np.round(values.astype(np.float32) / 257).astype(np.uint8)
    raise ShapeError(
        f"pixels are uint8 or float in [0, 1] (or uint16), got {values.dtype} from {low:g} to "
        f"{high:g}, whose range is not known; convert them to uint8, or to uint16 if they are of "
        "16 bits"
    )


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
    if reads_raw() and is_raw(data) and (developed := develop(data, max_pixels)) is not None:
        return developed
    try:
        picture = Image.open(io.BytesIO(data), formats=readers())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FourMError(_too_large(str(error), max_pixels)) from error
    except UnidentifiedImageError as error:
        raise FourMError(
            f"expected a picture ({', '.join(FORMATS)}), got {len(data)} bytes that are none; "
            "convert the file or leave it out"
        ) from error
    except Exception as error:
        _raise_short_memory(error)
        raise FourMError(
            f"the header of this picture file is broken ({type(error).__name__}: {error})"
        ) from error
    if picture.width * picture.height > max_pixels:
        raise FourMError(_too_large(f"{picture.width} x {picture.height} pixels", max_pixels))
    if max(picture.size) > MAX_RATIO * min(picture.size):
        raise FourMError(
            f"expected a picture at most {MAX_RATIO} times as long as wide, got {picture.width} x "
            f"{picture.height} pixels, which no network can be shown; cut it"
        )
    return picture


def _raise_short_memory(error: Exception) -> None:
    """Short memory is no fault of the photo: it must not be left out for that.

    Raises:
        MemoryError: the error is of that kind
    """
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        raise MemoryError("a picture could not be opened for lack of memory") from error


@functools.cache
def readers() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return (*(name for name in FORMATS if name in Image.OPEN), *heif_formats())


def _too_large(what: str, max_pixels: int) -> str:
    return (
        f"expected a picture of at most {max_pixels} pixels, got {what}; "
        "shrink it, or raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    )


def _orientation(picture: Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1


def upright(picture: Image) -> Image:
    """A picture turned as its EXIF rotation says, where it has one."""
    from PIL import ImageOps

    if not 2 <= _orientation(picture) <= 8:
        return picture
    return ImageOps.exif_transpose(picture) or picture


def to_rgb(picture: Image, background: tuple[int, int, int] = _WHITE) -> Image:
    """A picture of any mode as 8-bit RGB; what is transparent shows the background.

    Raises:
        ShapeError: a 32-bit picture whose numbers may be of any range; see `eight_bits`
    """
    from PIL import Image

    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if is_deep(picture):
        return _deep_to_rgb(picture, background)
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return picture.convert("RGB")


def _deep_to_rgb(picture: Image, background: tuple[int, int, int]) -> Image:
    from PIL import Image

    plane = np.asarray(picture)
    opaque = Image.fromarray(eight_bits(plane)).convert("RGB")
    hidden = picture.info.get("transparency")  # of a grey PNG: the one level that is not seen
    if not isinstance(hidden, int):
        return opaque
    canvas = Image.new("RGB", picture.size, background)
    canvas.paste(opaque, mask=Image.fromarray((plane != hidden).astype(np.uint8) * 255))
    return canvas


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
    part = picture.crop(crop.box)
    height, width = crop.output_size
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling[resample.upper()])
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.hflip else part


def cut_deep(picture: Image, crop: Crop | None, resample: Resample) -> Floats:
    """`cut` for one channel in steps of 1/65535, as `deep_plane` gives it.

    Whole numbers are resized as 16 bits, so that none leaves 0..65535 and all are what Pillow makes
    of the file; floats as floats.
    """
    from PIL import Image

    plane = deep_plane(picture)
    deep = Image.fromarray(plane if picture.mode == "F" else plane.astype(np.uint16))
    return np.array(cut(deep, crop, resample), dtype=np.float32)


def png(picture: Any) -> bytes:
    """A picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
