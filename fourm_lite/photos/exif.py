"""What a photo's file says of itself: size, when it was taken, with which camera, and where.

Where it was taken is told only to who asks for it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any

from fourm_lite.modalities.camera_files import is_raw, tiff_tags
from fourm_lite.modalities.pictures import readers

_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)
_MAKE, _MODEL, _EXIF, _GPS = 271, 272, 34665, 34853
_TAKEN = (36867, 36868, 306)
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_LONGEST = 100


def photo_facts(data: bytes, *, gps: bool = False) -> dict[str, Any]:
    """Columns of a photo: `width`, `height` (upright), `taken`, `camera`; those that are known.

    >>> photo_facts(b"no photo")
    {}

    Args:
        data: the file; only its header is read
        gps: whether `latitude` and `longitude` are told too

    Units:
        taken: the camera's own clock, "2020-05-01T12:00:00"; compares as text
    """
    try:
        tags, (width, height) = _raw_tags(data) if is_raw(data) else _tags(data)
        inner = dict(tags.get_ifd(_EXIF))
        place = dict(tags.get_ifd(_GPS)) if gps else {}
    except Exception:  # readers raise almost anything; who opens the photo tells of it
        return {}
    if tags.get(_ORIENTATION) in _TURNED:
        width, height = height, width
    facts: dict[str, Any] = {
        "width": width,
        "height": height,
        "taken": _date(inner, tags),
        "camera": _camera(tags),
    }
    facts |= _position(place)
    return {name: value for name, value in facts.items() if value is not None}


def _tags(data: bytes) -> tuple[Any, tuple[int, int]]:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=readers()) as picture:
        return picture.getexif(), picture.size


def _raw_tags(data: bytes) -> tuple[Any, tuple[None, None]]:
    """Of a raw file; its size is that of a thumbnail."""
    return tiff_tags(data), (None, None)


def _date(*tags: Mapping[int, Any]) -> str | None:
    for name in _TAKEN:
        for some in tags:
            found = _DATE.match(str(some.get(name, "")))
            if found and found[1] != "0000":
                return "{}-{}-{}T{}:{}:{}".format(*found.groups())
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    make, model = (_text(tags.get(name)) for name in (_MAKE, _MODEL))
    known = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    return known.strip() or None


def _text(value: Any) -> str:
    """A text of a file, without what is no letter."""
    return "".join(c for c in str(value or "") if c.isprintable()).strip()[:_LONGEST]


def _position(place: Mapping[int, Any]) -> dict[str, float]:
    with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError):
        found = {
            name: sum(float(part) / 60**i for i, part in enumerate(place[tag + 1]))
            * (-1 if place.get(tag) in ("S", "W") else 1)
            for name, tag in (("latitude", 1), ("longitude", 3))
        }
        if abs(found["latitude"]) <= 90 and abs(found["longitude"]) <= 180:
            return found
    return {}
