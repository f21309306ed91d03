"""Columns of photos: what lists and tables say of them, and what their own files say.

A null, a NaN and an empty text say nothing. What is of another kind than was asked for is refused
with its reason, so that its row can be listed; nothing becomes the text of itself. Of a file, its
header tells the size, when and with which camera it was taken, and where, for who asks for that.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fourm_lite.modalities.camera_files import is_raw, tiff_tags
from fourm_lite.modalities.pictures import readers


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: null, or NaN where others have numbers.

    >>> [is_missing(v) for v in (None, float("nan"), "", 0)]
    [True, True, False, False]
    """
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_nan(value: Any) -> Any:
    """The value with null in the place of each NaN, also inside of objects.

    >>> without_nan({"a": float("nan"), "b": {"c": float("nan")}, "d": 1})
    {'a': None, 'b': {'c': None}, 'd': 1}
    """
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return None if is_missing(value) else value


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions that a cell holds: a text, several, or none.

    >>> captions_of(["a dog", None, " "])
    ('a dog',)

    Raises:
        ValueError: it holds something else than texts
    """
    if is_missing(value):
        return ()
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if is_missing(one):
            continue
        if not isinstance(one, str):
            raise ValueError(f"has a caption that is no text: {_told(one)}")
        if one.strip():
            found.append(one)
    return tuple(found)


def labels_of(value: Any) -> tuple[str, ...]:
    """The names of classes that a cell holds: one, several, or none.

    >>> labels_of("cat"), labels_of([3, None, 4.0]), labels_of(float("nan"))
    (('cat',), ('3', '4'), ())

    Raises:
        ValueError: it holds something else than texts and numbers
    """
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if is_missing(one) or one == "":
            continue
        if not isinstance(one, str | int | float):
            raise ValueError(f"has a label that is neither a name nor a number: {_told(one)}")
        whole = isinstance(one, float) and one.is_integer()
        found.append(str(int(one)) if whole else str(one))
    return tuple(dict.fromkeys(found))


def in_class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names each once: by number where all are whole numbers, else by name.

    >>> in_class_order(["10", "9", "9"]), in_class_order(["10", "9", "cat"])
    (('9', '10'), ('10', '9', 'cat'))
    """
    each = set(names)
    if all(name.isascii() and name.removeprefix("-").isdigit() for name in each):
        return tuple(sorted(each, key=lambda name: (int(name), name)))
    return tuple(sorted(each))


def text_of(value: Any) -> str:
    """A cell that holds a name, such as a split; "" where it says nothing.

    Raises:
        ValueError: it holds a list or an object
    """
    if isinstance(value, list | tuple | Mapping):
        raise ValueError(f"has a name that is no text: {_told(value)}")
    return "" if is_missing(value) else str(value)


def _told(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}" + "..." * (len(text) > 60)


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
