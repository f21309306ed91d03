"""Codecs of modalities that are written as text: text, boxes, people, palettes, metadata, masks.

They read and write UTF-8 text or JSON. `form` names the format in
`tokenization.words.sequences.FORMATS` that turns the value into text for the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fourm_lite.errors import FourMError
from fourm_lite.modalities.legend import Key, drawable, font
from fourm_lite.modalities.spec import Crop
from fourm_lite.modalities.values import (
    Box,
    Color,
    Metadata,
    Person,
    PointQuery,
    Segment,
    as_colors,
    color_name,
    crop_boxes,
)

MAX_NUMBER = 1e12  # of a place, a colour or a measure in a file; NaN is not below it

if TYPE_CHECKING:
    from PIL.Image import Image

CANVAS = 224
MASK_COLORS: tuple[Color, ...] = ((230, 120, 30), (40, 150, 90), (60, 90, 200), (160, 60, 160))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FourMError(
            f"expected UTF-8 text, got other bytes ({error}); convert the file"
        ) from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(_text(data))
    except (ValueError, RecursionError) as error:
        raise FourMError(f"expected a JSON file, got something else ({error})") from error


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _entries(content: Any, key: str, what: str) -> list[Mapping[str, Any]]:
    entries = content.get(key) if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise FourMError(
            f"expected a JSON list of {what}, or an object with '{key}', got {str(content)[:80]}"
        )
    return entries


def _numbers(values: Any, count: int | None, what: str) -> tuple[float, ...]:
    good = isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < MAX_NUMBER
        for v in values
    )
    if not good or count not in (None, len(values)):
        raise FourMError(f"expected {count or 'some'} numbers as {what}, got {str(values)[:80]}")
    return tuple(values)


def _optional(entry: Mapping[str, Any], key: str, count: int) -> tuple[float, ...] | None:
    return None if entry.get(key) is None else _numbers(entry[key], count, f"'{key}'")


def _whole(values: Iterable[float]) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(value == value // 1 for value in numbers):  # NaN and infinity are no whole numbers
        raise FourMError(f"expected whole numbers, got {str(numbers)[:80]}")
    return tuple(int(value) for value in numbers)


@dataclass(frozen=True)
class TextCodec:
    """Plain UTF-8 text; a crop changes nothing."""

    form: ClassVar[str] = "text"

    def read(self, data: bytes, crop: Crop | None = None) -> str:
        """The text of a file, without blanks around it."""
        return _text(data).strip()

    def write(self, value: str) -> bytes:
        """A text file."""
        return value.encode()

    def picture(self, value: str) -> str:
        """The text."""
        return value


@dataclass(frozen=True)
class BoxCodec:
    """Detected things: `{"instances": [{"boxes": [4 numbers], "class_name", "score"}]}`.

    Units:
        min_visibility: part of a box that a crop must show for it to be kept
    """

    min_visibility: float = 0.0
    form: ClassVar[str] = "boxes"

    def read(self, data: bytes, crop: Crop | None = None) -> tuple[Box, ...]:
        """The boxes as seen through the crop, which must know the size of the whole picture."""
        boxes = map(_box, _entries(_json(data), "instances", "instances"))
        return crop_boxes(boxes, crop, min_visibility=self.min_visibility)

    def write(self, value: Sequence[Box]) -> bytes:
        """A JSON file."""
        return _dump(
            {
                "instances": [
                    {
                        "boxes": [box.xmin, box.ymin, box.xmax, box.ymax],
                        "class_name": box.name,
                        "score": box.score,
                    }
                    for box in value
                ]
            }
        )

    def picture(self, value: Sequence[Box]) -> Image:
        """The boxes with their names on an empty canvas."""
        return _drawn([((box.xmin, box.ymin, box.xmax, box.ymax), box.name) for box in value])


def _box(entry: Mapping[str, Any]) -> Box:
    xmin, ymin, xmax, ymax = _numbers(entry.get("boxes"), 4, "'boxes'")
    score = entry.get("score", 1.0)
    name = entry.get("class_name", "")
    if not isinstance(score, int | float) or not isinstance(name, str):
        raise FourMError(f"expected a number as 'score' and a text as 'class_name', got {entry}")
    return Box(xmin, ymin, xmax, ymax, name, float(score))


_UNITS = {
    "original_width": "px", "original_height": "px", "entropy": "bits", "colorfulness": "of 150",
    "brightness": "of 255", "contrast": "of 127", "saturation": "of 255",
    "aesthetic_score": "of 10",
}  # fmt: skip


@dataclass(frozen=True)
class MetadataCodec:
    """A JSON object of numbers; a crop changes nothing."""

    form: ClassVar[str] = "metadata"

    def read(self, data: bytes, crop: Crop | None = None) -> Metadata:
        """The fields of a JSON file."""
        content = _json(data)
        if not isinstance(content, Mapping):
            raise FourMError(f"expected a JSON object of numbers, got {str(content)[:80]}")
        return {name: _numbers([value], 1, f"'{name}'")[0] for name, value in content.items()}

    def write(self, value: Metadata) -> bytes:
        """A JSON file."""
        return _dump(value)

    def picture(self, value: Metadata) -> str:
        """One line a field."""
        return "\n".join(f"{key.name}: {key.value}" for key in self.legend(value))

    def legend(self, value: Metadata) -> tuple[Key, ...]:
        """A row for each field: its name, its number and unit."""
        return tuple(
            Key(name.replace("_", " "), f"{_rounded(number)} {_UNITS.get(name, '')}".rstrip())
            for name, number in value.items()
        )


def _rounded(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


@dataclass(frozen=True)
class PoseCodec:
    """People: `{"people": [{"box", "pose", "global", "camera", "shape"}]}`, made for one crop."""

    form: ClassVar[str] = "human_poses"

    def read(self, data: bytes, crop: Crop | None = None) -> tuple[Person, ...]:
        """The people of a JSON file."""
        return tuple(map(_person, _entries(_json(data), "people", "people")))

    def write(self, value: Sequence[Person]) -> bytes:
        """A JSON file."""
        groups = [
            {
                "box": person.box,
                "pose": person.pose,
                "global": person.rotation,
                "camera": person.camera,
                "shape": person.shape,
            }
            for person in value
        ]
        return _dump({"people": groups})

    def picture(self, value: Sequence[Person]) -> Image:
        """The boxes of the people on an empty canvas."""
        return _drawn([(person.box, "person") for person in value if person.box is not None])


_PERSON_KEYS = ("box", "pose", "global", "camera", "shape")


def _person(entry: Mapping[str, Any]) -> Person:
    if entry.keys().isdisjoint(_PERSON_KEYS):
        raise FourMError(f"expected a person with some of {_PERSON_KEYS}, got {str(entry)[:80]}")
    pose = _optional(entry, "pose", 8)
    return Person(
        box=_optional(entry, "box", 4),
        pose=None if pose is None else _whole(pose),
        rotation=_optional(entry, "global", 9),
        camera=_optional(entry, "camera", 3),
        shape=_optional(entry, "shape", 10),
    )


@dataclass(frozen=True)
class PaletteCodec:
    """A JSON list of colours, `[[r, g, b], ...]` or flat; a crop changes nothing.

    Units:
        whole numbers 0..255, or floats within 0..1
    """

    form: ClassVar[str] = "color_palette"

    def read(self, data: bytes, crop: Crop | None = None) -> tuple[Color, ...]:
        """The colours of a JSON file."""
        content = _json(data)
        if isinstance(content, list) and all(isinstance(c, list) for c in content):
            return as_colors(_numbers(color, 3, "a colour") for color in content)
        flat = _numbers(content, None, "colours")
        return as_colors(flat[start : start + 3] for start in range(0, len(flat), 3))

    def write(self, value: Sequence[Color]) -> bytes:
        """A JSON file."""
        return _dump([list(color) for color in value])

    def picture(self, value: Sequence[Color]) -> Image:
        """One square a colour."""
        from PIL import Image

        strip = Image.new("RGB", (max(len(value), 1), 1), (255, 255, 255))
        strip.putdata([tuple(color) for color in value] or [(255, 255, 255)])
        return strip.resize((strip.width * 32, 32), Image.Resampling.NEAREST)

    def legend(self, value: Sequence[Color]) -> tuple[Key, ...]:
        """Each colour with its name and its hexadecimal number."""
        return tuple(Key(color_name(c), "#{:02x}{:02x}{:02x}".format(*c), c) for c in value)


@dataclass(frozen=True)
class SamCodec:
    """Points and what was found there, made for one crop.

    `{"points": [{"x", "y", "segments": [{"box": [xmin, ymin, xmax, ymax], "tokens": [16 ids]}]}]}`
    """

    form: ClassVar[str] = "sam_instances"

    def read(self, data: bytes, crop: Crop | None = None) -> tuple[PointQuery, ...]:
        """The points of a JSON file."""
        return tuple(map(_point, _entries(_json(data), "points", "points")))

    def write(self, value: Sequence[PointQuery]) -> bytes:
        """A JSON file."""
        points = [
            {
                "x": query.x,
                "y": query.y,
                "segments": [{"box": s.box, "tokens": s.tokens} for s in query.segments],
            }
            for query in value
        ]
        return _dump({"points": points})

    def picture(self, value: Sequence[PointQuery]) -> Image:
        """The things as masks where they are known, their boxes, and the points."""
        segments = [s for query in value for s in query.segments]
        canvas = _drawn([(tuple(x / CANVAS for x in s.box), "") for s in segments])
        for number, segment in enumerate(segments):
            _draw_mask(canvas, segment, MASK_COLORS[number % len(MASK_COLORS)])
        return _with_points(canvas, [(query.x, query.y) for query in value])


def _point(entry: Mapping[str, Any]) -> PointQuery:
    x, y = _whole(_numbers([entry.get("x"), entry.get("y")], 2, "'x' and 'y'"))
    segments = _entries(entry.get("segments", []), "segments", "segments")
    return PointQuery(x, y, tuple(map(_segment, segments)))


def _segment(entry: Mapping[str, Any]) -> Segment:
    xmin, ymin, xmax, ymax = _whole(_numbers(entry.get("box"), 4, "'box'"))
    return Segment((xmin, ymin, xmax, ymax), _whole(_numbers(entry.get("tokens"), 16, "'tokens'")))


def _drawn(boxes: Iterable[tuple[tuple[float, ...], str]]) -> Image:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (CANVAS, CANVAS), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    inside: Callable[[float], float] = lambda x: min(max(x, 0.0), 1.0) * (CANVAS - 1)  # noqa: E731
    for (xmin, ymin, xmax, ymax), name in boxes:
        left, right = sorted((inside(xmin), inside(xmax)))
        top, bottom = sorted((inside(ymin), inside(ymax)))
        draw.rectangle((left, top, right, bottom), outline=(200, 30, 30), width=2)
        if name:
            draw.text((left + 3, top + 2), drawable(name), fill=(0, 0, 0), font=font())
    return canvas


def _draw_mask(canvas: Image, segment: Segment, color: Color) -> None:
    from PIL import Image

    left, right = sorted((segment.box[0], segment.box[2]))
    top, bottom = sorted((segment.box[1], segment.box[3]))
    if segment.mask is None or left == right or top == bottom:
        return
    mask = Image.fromarray(segment.mask.astype("uint8") * 160)
    size = (right - left, bottom - top)
    canvas.paste(Image.new("RGB", size, color), (left, top), mask.resize(size))


def _with_points(canvas: Image, points: Iterable[tuple[int, int]]) -> Image:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(30, 60, 200))
    return canvas
