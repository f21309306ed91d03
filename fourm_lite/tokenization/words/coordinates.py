"""The words that all sequence formats share: coordinates `v0=12`, and everything else.

Reading is lenient. Text that a model wrote may break off, repeat itself or name unknown things;
what can be read is read, the rest is skipped, and nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fourm_lite.errors import FourMError

BINS = 1000  # v0=0 .. v0=999 and so on, in the vocabulary of 4M

_COORDINATE = re.compile(r"v([0-3])=([0-9]{1,9})\Z")
_MARK = re.compile(r"\[(?:PAD|UNK|SOS|EOS|S_\d+)\]")


@dataclass(frozen=True)
class Coordinate:
    """A number word: `v2=17` has axis 2 and value 17."""

    axis: int
    value: int


Field = Coordinate | str


def read_fields(text: str) -> list[Field]:
    """The words of a text, number words read; sentinels, padding and the like left out."""
    return [_field(word) for word in _MARK.sub(" ", text).split()]


def _field(word: str) -> Field:
    match = _COORDINATE.match(word)
    return Coordinate(int(match[1]), int(match[2])) if match else word


def groups_after(fields: list[Field], heads: frozenset[str]) -> Iterator[tuple[str, list[Field]]]:
    """Each head word with the fields up to the next one; what precedes the first is skipped."""
    head: str | None = None
    body: list[Field] = []
    for field in fields:
        if isinstance(field, str) and field in heads:
            if head is not None:
                yield head, body
            head, body = field, []
        else:
            body.append(field)
    if head is not None:
        yield head, body


def leading_coordinates(fields: list[Field]) -> list[Coordinate]:
    """The number words at the front, up to the first other word."""
    found: list[Coordinate] = []
    for field in fields:
        if not isinstance(field, Coordinate):
            break
        found.append(field)
    return found


def values_on_axis(fields: list[Field], count: int, axis: int = 0) -> list[int] | None:
    """The first `count` numbers, if all of them stand on the axis; otherwise `None`."""
    numbers = leading_coordinates(fields)[:count]
    if len(numbers) < count or any(number.axis != axis for number in numbers):
        return None
    return [number.value for number in numbers]


def box_values(fields: list[Field]) -> tuple[int, int, int, int] | None:
    """The box `v0=.. v1=.. v2=.. v3=..` at the front, or `None` where it is incomplete."""
    numbers = leading_coordinates(fields)[:4]
    if [number.axis for number in numbers] != [0, 1, 2, 3]:
        return None
    a, b, c, d = (number.value for number in numbers)
    return a, b, c, d


def box_words(values: tuple[int, int, int, int]) -> str:
    """Four numbers as `v0=.. v1=.. v2=.. v3=..`."""
    return " ".join(f"v{axis}={value}" for axis, value in enumerate(values))


def to_bin(fraction: float, bins: int = BINS) -> int:
    """A number in 0..1 as a bin: the nearest, halves to the even one, what lies outside clamped."""
    if fraction != fraction:
        raise FourMError("a coordinate is NaN; drop the instance or mend its file")
    return round(min(max(fraction, 0.0), 1.0) * (bins - 1))


def from_bin(value: int, bins: int = BINS) -> float:
    """The number in 0..1 that a bin stands for."""
    return min(value, bins - 1) / (bins - 1)


def token_word(token: int, half: int = 512) -> str:
    """A token id as one number word: the first `half` ids on axis 0, the others on axis 1."""
    return f"v0={token}" if token < half else f"v1={token - half}"


def token_of(number: Coordinate, half: int = 512) -> int | None:
    """The token id that `token_word` wrote, or `None` for a word that it never writes."""
    if number.axis > 1 or number.value >= half:
        return None
    return number.value + half * number.axis
