"""A palette as text: `v1=<colours> v0=red v0=green v0=blue ...`, channels in 0..255.

Source:
    4M-21 (Bachmann et al. 2024), appendix B
"""

from __future__ import annotations

from collections.abc import Iterable

from fourm_lite.modalities.values import Color, as_colors
from fourm_lite.tokenization.sequences.fields import Coordinate, leading_coordinates, read_fields


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
