"""What is known of a picture as a whole, as type/value pairs: `v1=<field> v0=<bin>`.

Unusual: the original decodes a bin with one bin too many (150 comes back as 147) and gives
thresholds back as bin numbers. `original=True` does the same; otherwise a decoded value encodes to
its own bin.

Source:
    4M-21 (Bachmann et al. 2024), appendix B
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fourm_lite.errors import FourMError, check_choice
from fourm_lite.modalities.values import Color, Metadata, as_colors
from fourm_lite.tokenization.words.instances import (
    BINS,
    Coordinate,
    leading_coordinates,
    read_fields,
)

FLOAT_BINS = 50


class Quantity(Protocol):
    """How a number becomes a bin, and back."""

    def encode(self, value: float, bins: int) -> int:
        """The bin of a value; what lies outside falls into the outermost bin."""
        ...

    def decode(self, index: int, original: bool) -> float:
        """A value of the bin."""
        ...


@dataclass(frozen=True)
class Count:
    """Whole numbers, divided by `unit`: pixels of a side are counted in steps of 32."""

    unit: int = 1

    def encode(self, value: float, bins: int) -> int:
        """The bin of a value; what lies outside falls into the outermost bin."""
        return int(min(max(value // self.unit, 0), bins - 1))

    def decode(self, index: int, original: bool) -> float:
        """A value of the bin."""
        return index * self.unit


@dataclass(frozen=True)
class Scale:
    """Numbers between two ends, in `FLOAT_BINS` bins."""

    low: float
    high: float

    def encode(self, value: float, bins: int) -> int:
        """The bin of a value; what lies outside falls into the outermost bin."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return int(share * (FLOAT_BINS - 1))

    def decode(self, index: int, original: bool) -> float:
        """A value of the bin: its lower end."""
        if original:
            return index / FLOAT_BINS * (self.high - self.low) + self.low
        index = min(index, FLOAT_BINS - 1)
        value = index / (FLOAT_BINS - 1) * (self.high - self.low) + self.low
        while self.encode(value, BINS) < index:  # rounding fell just short of the bin
            value = math.nextafter(value, math.inf)
        return value


@dataclass(frozen=True)
class Levels:
    """Numbers cut at thresholds; `typical` holds one value for each level."""

    thresholds: tuple[float, ...]
    typical: tuple[float, ...]

    def encode(self, value: float, bins: int) -> int:
        """The number of thresholds that the value reaches."""
        return bisect_right(self.thresholds, value)

    def decode(self, index: int, original: bool) -> float:
        """A typical value of the level; for the original, its number."""
        return index if original else self.typical[min(index, len(self.thresholds))]


# The place of a field in this table is its number in the text.
FIELDS: dict[str, Quantity] = {
    "original_width": Count(32),
    "original_height": Count(32),
    "caption_n_chars": Count(),
    "caption_n_words": Count(),
    "caption_n_sentences": Count(),
    "n_humans": Count(),
    "n_sam_instances": Count(),
    "n_coco_instances": Count(),
    "coco_instance_diversity": Count(),
    "colorfulness": Scale(0, 150),
    "brightness": Scale(0, 255),
    "contrast": Scale(0, 127),
    "saturation": Scale(0, 255),
    "entropy": Scale(0, 10),
    "walkability": Scale(0, 1),
    "objectness": Scale(0, 1),
    "semantic_diversity": Count(),
    "geometric_complexity": Scale(0, 0.75),
    "occlusion_score": Scale(0, 0.25),
    "watermark_score": Levels((0.5,), (0.25, 0.75)),
    "aesthetic_score": Levels((4.5, 5.5), (4.0, 5.0, 6.0)),
}
_NAMES = tuple(FIELDS)


def metadata_to_chunks(metadata: Mapping[str, float], *, bins: int = BINS) -> list[str]:
    """One `v1=<field> v0=<bin>` a field, in the order given.

    Raises:
        ConfigError: a field is unknown
        FourMError: a value is not a finite number
    """
    return [_pair(name, value, bins) for name, value in metadata.items()]


def metadata_to_text(metadata: Mapping[str, float], *, bins: int = BINS) -> str:
    """All fields in one text; see `metadata_to_chunks`."""
    return " ".join(metadata_to_chunks(metadata, bins=bins))


def _pair(name: str, value: float, bins: int) -> str:
    check_choice("a field of metadata", name, of=FIELDS)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise FourMError(f"the metadata field '{name}' needs a finite number, got {value!r}")
    return f"v1={_NAMES.index(name)} v0={FIELDS[name].encode(value, bins)}"


def text_to_metadata(text: str, *, original: bool = False) -> Metadata:
    """The fields of a text; unknown and unfinished ones are skipped, the last of two wins."""
    metadata: Metadata = {}
    pending: str | None = None
    for field in read_fields(text):
        if not isinstance(field, Coordinate) or field.axis > 1:
            pending = None
        elif field.axis == 1:
            pending = _NAMES[field.value] if field.value < len(_NAMES) else None
        elif pending is not None:
            metadata[pending] = FIELDS[pending].decode(field.value, original)
            pending = None
    return metadata


def palette_to_text(palette: Iterable[Color]) -> str:
    """The colours in the order given.

    Raises:
        FourMError: a colour is not three whole numbers in 0..255, or floats in 0..1
    """
    colors = as_colors(palette)
    channels = [f"v0={channel}" for color in colors for channel in color]
    return " ".join([f"v1={len(colors)}", *channels])


def palette_to_chunks(palette: Iterable[Color]) -> list[str]:
    """The palette as a single chunk: a part of it means nothing."""
    return [palette_to_text(palette)]


def text_to_palette(text: str) -> tuple[Color, ...]:
    """The whole colours of a text, at most as many as it announces."""
    fields = read_fields(text)
    numbers = leading_coordinates(fields)
    announced = None
    if numbers and numbers[0].axis == 1:
        announced = numbers[0].value
        numbers = numbers[1:]
    channels = [min(n.value, 255) for n in _while_axis_zero(numbers)]
    colors = list(zip(channels[0::3], channels[1::3], channels[2::3], strict=False))
    return tuple(colors if announced is None else colors[:announced])


def _while_axis_zero(numbers: list[Coordinate]) -> list[Coordinate]:
    for place, number in enumerate(numbers):
        if number.axis != 0:
            return numbers[:place]
    return numbers
