"""Detected things as text: `v0=xmin v1=ymin v2=xmax v3=ymax class`, nearest to the origin first.

Source:
    Pix2Seq (Chen et al. 2022); 4M (Mizrahi et al. 2023), appendix B.1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from fourm_lite.modalities.values import Box
from fourm_lite.tokenization.sequences.fields import (
    BINS,
    Coordinate,
    Field,
    box_values,
    box_words,
    from_bin,
    read_fields,
    to_bin,
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
