"""What is found in a picture as text: boxes, masks at points, people; and the words of all formats.

A box is `v0=xmin v1=ymin v2=xmax v3=ymax class`, nearest to the origin first; a point is followed
by what is found there; a person is `human` with a box, then pose, rotation, camera and shape in any
order. Reading is lenient. Text that a model wrote may break off, repeat itself or name unknown
things; what can be read is read, the rest is skipped, and nothing raises.

Source:
    Pix2Seq (Chen et al. 2022); 4M (Mizrahi et al. 2023), appendix B.1; 4D-Humans (Goel et al. 2023)
    for a person's groups; 4M-21 (Bachmann et al. 2024), appendix B
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.values import Box, Person, PointQuery, Segment
from fourm_lite.tokenization.vq.randomness import RandomSource

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


MIN_SCORE = 0.6


def boxes_to_chunks(
    boxes: Iterable[Box], *, min_score: float = MIN_SCORE, bins: int = BINS
) -> list[str]:
    """One text a box, those with too low a score left out, nearest to the origin first.

    Units:
        boxes: fractions of the picture (crop them before: `modalities.values.crop_boxes`)
    """
    sure = [box for box in boxes if box.score >= min_score]
    sure.sort(key=lambda box: math.hypot(box.xmin, box.ymin))
    return [_box_text(box, bins) for box in sure]


def boxes_to_text(boxes: Iterable[Box], *, min_score: float = MIN_SCORE, bins: int = BINS) -> str:
    """All boxes in one text; see `boxes_to_chunks`."""
    return " ".join(boxes_to_chunks(boxes, min_score=min_score, bins=bins))


def _box_text(box: Box, bins: int) -> str:
    corners = (
        to_bin(box.xmin, bins),
        to_bin(box.ymin, bins),
        to_bin(box.xmax, bins),
        to_bin(box.ymax, bins),
    )
    return f"{box_words(corners)} {box.name}".rstrip()


def text_to_boxes(text: str, *, bins: int = BINS) -> tuple[Box, ...]:
    """The boxes of a text; one without four numbers is skipped, one without class has no name."""
    boxes = []
    for group in _groups(read_fields(text)):
        corners = box_values(group)
        if corners is not None:
            name = " ".join(field for field in group[4:] if isinstance(field, str))
            xmin, ymin, xmax, ymax = (from_bin(value, bins) for value in corners)
            boxes.append(Box(xmin, ymin, xmax, ymax, name))
    return tuple(boxes)


def _groups(fields: list[Field]) -> Iterator[list[Field]]:
    """Cuts before every first coordinate."""
    group: list[Field] = []
    for field in fields:
        if isinstance(field, Coordinate) and field.axis == 0:
            yield group
            group = []
        group.append(field)
    yield group


MASK_TOKENS = 16
NOTHING = "none"
_POINT_HEADS = frozenset({"point", "polygon", NOTHING})


def points_to_chunks(
    queries: Iterable[PointQuery], *, source: RandomSource | None = None
) -> list[str]:
    """One text a point; with a `source` the things at a point come in a random order."""
    return [_query_text(query, source) for query in queries]


def points_to_text(queries: Iterable[PointQuery], *, source: RandomSource | None = None) -> str:
    """All points in one text; see `points_to_chunks`."""
    return " ".join(points_to_chunks(queries, source=source))


def _query_text(query: PointQuery, source: RandomSource | None) -> str:
    _check_places(query.y, query.x)
    segments = query.segments if source is None else source.shuffled(query.segments)
    found = [_segment_text(segment) for segment in segments] or [NOTHING]
    return " ".join([f"point v0={query.y} v1={query.x}", *found])


def _segment_text(segment: Segment) -> str:
    if len(segment.tokens) != MASK_TOKENS:
        raise ShapeError(f"a mask has {MASK_TOKENS} tokens, got {len(segment.tokens)}")
    if any(not 0 <= token < 1024 for token in segment.tokens):
        raise FourMError(f"mask tokens lie in 0..1023, got {segment.tokens}")
    _check_places(*segment.box)
    words = [token_word(token) for token in segment.tokens]
    return " ".join(["polygon", box_words(segment.box), *words])


def _check_places(*places: int) -> None:
    if any(not 0 <= place < BINS for place in places):
        raise FourMError(f"points and boxes lie in 0..{BINS - 1} pixels, got {places}")


def text_to_points(text: str) -> tuple[PointQuery, ...]:
    """The points of a text with what was found there; a polygon that is incomplete is skipped."""
    queries: list[PointQuery] = []
    for head, body in groups_after(read_fields(text), _POINT_HEADS):
        if head == "point":
            start = leading_coordinates(body)[:2]
            if [number.axis for number in start] == [0, 1]:
                queries.append(PointQuery(x=start[1].value, y=start[0].value))
        elif head == "polygon" and queries:
            last = queries[-1]
            found = (*last.segments, *_segment(body))
            queries[-1] = PointQuery(last.x, last.y, found)
    return tuple(queries)


def _segment(body: list[Field]) -> tuple[Segment, ...]:
    box = box_values(body)
    numbers = leading_coordinates(body)[4 : 4 + MASK_TOKENS]
    tokens = tuple(t for t in map(token_of, numbers) if t is not None)
    if box is None or len(tokens) != MASK_TOKENS:
        return ()
    return (Segment(box, tokens),)


def grid_points(side: int = 7, size: int = 224) -> tuple[tuple[int, int], ...]:
    """Points on a regular grid, (y, x) row by row, with equal distances to the borders.

    >>> grid_points(1)
    ((112, 112),)
    """
    places = [size * (k + 1) // (side + 1) for k in range(side)]
    return tuple((y, x) for y in places for x in places)


Group = Literal["pose", "global", "camera", "shape"]
ORDER: tuple[Group, ...] = ("pose", "global", "camera", "shape")
NOBODY = "none"

_PERSON_HEADS = frozenset({"human", *ORDER, NOBODY})
# The ends of each group's numbers: they are spread over all bins.
_ENDS: dict[str, tuple[float, float]] = {
    "global": (-1.0, 1.0),
    "camera": (-1.0, 19.0),
    "shape": (-3.0, 3.0),
}
_LENGTHS = {"pose": 8, "global": 9, "camera": 3, "shape": 10}


def people_to_chunks(
    people: Iterable[Person],
    *,
    order: Sequence[Group] = ORDER,
    source: RandomSource | None = None,
    bins: int = BINS,
) -> list[str]:
    """One text a person, or the word `none` where there is nobody.

    Units:
        order: of the groups; with a `source` they are shuffled anew for each person instead
    """
    texts = []
    for person in people:
        groups = order if source is None else source.shuffled(list(order))
        texts.append(_person_text(person, groups, bins))
    return texts or [NOBODY]


def people_to_text(
    people: Iterable[Person],
    *,
    order: Sequence[Group] = ORDER,
    source: RandomSource | None = None,
    bins: int = BINS,
) -> str:
    """All people in one text; see `people_to_chunks`."""
    return " ".join(people_to_chunks(people, order=order, source=source, bins=bins))


def _person_text(person: Person, order: Sequence[Group], bins: int) -> str:
    words = ["human"]
    if person.box is not None:
        if len(person.box) != 4:
            raise ShapeError(f"a person's box has 4 numbers, got {len(person.box)}")
        a, b, c, d = (to_bin(x, bins) for x in person.box)
        words.append(box_words((a, b, c, d)))
    for group in order:
        values = person.rotation if group == "global" else getattr(person, group)
        if values is not None:
            words += [group, *_group_words(group, values, bins)]
    return " ".join(words)


def _group_words(group: Group, values: Sequence[float], bins: int) -> list[str]:
    if len(values) != _LENGTHS[group]:
        raise ShapeError(
            f"the group '{group}' of a person has {_LENGTHS[group]} numbers, got {len(values)}"
        )
    if group == "pose":
        return [_pose_word(int(value)) for value in values]
    low, high = _ENDS[group]
    return [f"v0={_bin(value, low, high, bins)}" for value in values]


def _pose_word(token: int) -> str:
    if not 0 <= token < 1024:
        raise FourMError(f"pose tokens lie in 0..1023, got {token}")
    return token_word(token)


def _bin(value: float, low: float, high: float, bins: int) -> int:
    if value != value:
        raise FourMError("a number of a person is NaN; drop the person or mend its file")
    scale = (bins - 1) / (high - low)
    # One product and one sum, as the original computes it: halves are rounded to even.
    return min(max(round(scale * min(max(value, low), high) - scale * low), 0), bins - 1)


def text_to_people(text: str, *, bins: int = BINS) -> tuple[Person, ...]:
    """The people of a text; groups that are incomplete stay `None`."""
    people: list[Person] = []
    for head, body in groups_after(read_fields(text), _PERSON_HEADS):
        if head == "human":
            box = box_values(body)
            people.append(
                Person(box=None if box is None else tuple(from_bin(v, bins) for v in box))
            )
        elif people and head != NOBODY:
            people[-1] = _with_group(people[-1], head, body, bins)
    return tuple(people)


def _with_group(person: Person, group: str, body: list[Field], bins: int) -> Person:
    count = _LENGTHS[group]
    if group == "pose":
        tokens = [token_of(number) for number in leading_coordinates(body)[:count]]
        whole = [token for token in tokens if token is not None]
        return replace(person, pose=tuple(whole)) if len(whole) == count else person
    numbers = values_on_axis(body, count)
    if numbers is None:
        return person
    low, high = _ENDS[group]
    values = tuple(low + from_bin(number, bins) * (high - low) for number in numbers)
    if group == "global":
        return replace(person, rotation=values)
    if group == "camera":
        return replace(person, camera=values)
    return replace(person, shape=values)
