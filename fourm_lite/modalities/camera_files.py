"""Photos as phones and cameras store them, by the extras `heic` (pillow-heif) and `raw` (rawpy).

A raw file is known by its bytes. Most are TIFFs, and Pillow would show their thumbnail: those that
say what a camera alone says go to LibRaw first, and back to Pillow where it knows no such camera.
"""

from __future__ import annotations

import contextlib
import functools
import io
from importlib import util
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import FourMError

if TYPE_CHECKING:
    from PIL.Image import Image

HEIC = frozenset({".heic", ".heif", ".hif"})
_RAW = "raw dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr iiq rwl dcr kdc mrw"
RAW = frozenset("." + ending for ending in _RAW.split())

_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb")
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_MAKE, _SUB_IFDS, _DNG_VERSION = 271, 330, 50706


@functools.cache  # asked for every photo; a search through sys.path takes a millisecond
def find_spec(package: str) -> object:
    """What is known of an installed package, or None."""
    return util.find_spec(package)


def reads_heic() -> bool:
    """Whether the extra `heic` is installed."""
    return find_spec("pillow_heif") is not None


def reads_raw() -> bool:
    """Whether the extra `raw` is installed."""
    return find_spec("rawpy") is not None


def package_of(ending: str) -> str:
    """The package that reads files of this ending, or nothing.

    >>> package_of(".heic"), package_of(".nef"), package_of(".psd")
    ('pillow-heif', 'rawpy', '')
    """
    return "pillow-heif" if ending in HEIC else "rawpy" if ending in RAW else ""


def is_read(ending: str) -> bool:
    """Whether files of this ending are read here, by an extra that is installed."""
    return (ending in HEIC and reads_heic()) or (ending in RAW and reads_raw())


def heif_formats() -> tuple[str, ...]:
    """What Pillow calls the formats that pillow-heif adds; none where it is not installed."""
    return _registered() if reads_heic() else ()


@functools.cache
def _registered() -> tuple[str, ...]:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def is_raw(data: bytes) -> bool:
    """Whether bytes are those of a camera's raw file."""
    if data.startswith(_RAW_STARTS) or data[4:12] == b"ftypcrx ":
        return True
    if not data.startswith(_TIFF_STARTS):
        return False
    return data[8:10] == b"CR" or _says_camera(data)


def develop(data: bytes, max_pixels: int) -> Image | None:
    """The photo in a raw file, upright, with the camera's white; None: no camera LibRaw knows.

    Raises:
        FourMError: it has more pixels than are read, or is damaged
    """
    import rawpy
    from PIL import Image as pillow

    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            width, height = raw.sizes.iwidth, raw.sizes.iheight
            if width * height > max_pixels:
                raise FourMError(f"{width} x {height} pixels, at most {max_pixels} are read")
            return pillow.fromarray(raw.postprocess(use_camera_wb=True))
    except rawpy.LibRawFileUnsupportedError:
        return None
    except rawpy.LibRawError as error:
        raise FourMError(f"this raw file is broken or cut off ({error})") from error


def tiff_tags(data: bytes) -> Any:
    """What the head of a TIFF says, as Pillow gives EXIF; nothing where it is broken."""
    from PIL import Image as pillow

    tags = pillow.Exif()
    with contextlib.suppress(Exception):  # it is told of by who opens it
        tags.load(b"Exif\0\0" + data)
    return tags


def _says_camera(data: bytes) -> bool:
    tags = tiff_tags(data)
    return _DNG_VERSION in tags or (_MAKE in tags and _SUB_IFDS in tags)
