"""Detected things as text: `v0=xmin v1=ymin v2=xmax v3=ymax class`, nearest to the origin first.

Source:
    Pix2Seq (Chen et al. 2022); 4M (Mizrahi et al. 2023), appendix B.1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.values import Box, PointQuery, Segment
from fourm_lite.tokenization.vq.randomness import RandomSource
from fourm_lite.tokenization.words.coordinates import (
    BINS,
    Coordinate,
    Field,
    box_values,
    box_words,
    from_bin,
    groups_after,
    leading_coordinates,
    read_fields,
    to_bin,
    token_of,
    token_word,
)

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
_HEADS = frozenset({"point", "polygon", NOTHING})


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
    for head, body in groups_after(read_fields(text), _HEADS):
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
