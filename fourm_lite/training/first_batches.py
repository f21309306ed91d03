"""The batches that a start is solved from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

from fourm_lite.data.loader import MaskedBatch, MaskedStream


def first_batches(stream: MaskedStream, fits: Sequence[bool], number: int) -> Iterator[MaskedBatch]:
    """The first batches of those of a stream's components that fit.

    Units:
        fits: of each component; at least one is needed, else no batch ever fits
    """
    steps = (step for step in count() if fits[stream.turn(step)[0]])
    return (stream.batch(step) for step in islice(steps, number))
