"""Photos that cannot be read: left out of what is made of photos, and listed with their reasons.

A shard of labels notes beside its photos which ones it lacks, so that a later run tells of them
too. Whatever is made of one shard has the same photos.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.errors import FourMError
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record, tell_skipped
from fourm_lite.reading.arrays import open_npz

LEFT_OUT, REASONS = "left_out", "reasons"


def opened(record: Record) -> Any:
    """The photo as `Record.open_image` gives it, or why it cannot be read, as `Skipped`."""
    try:
        return record.open_image()
    except FourMError as error:
        return Skipped(record.id, str(error))


def readable(records: Sequence[Record]) -> tuple[list[Record], tuple[Skipped, ...]]:
    """The records whose photos can be read, and the others with their reasons.

    Raises:
        FourMError: no photo can be read
    """
    lost = [image for r in records if isinstance(image := opened(r), Skipped)]
    check_some(records, lost)
    names = {one.uri for one in lost}
    return [r for r in records if r.id not in names], tuple(lost)


def usable(records: Sequence[Record], *known: Collection[str]) -> list[Record]:
    """The records less those that have no labels or tokens because their photos cannot be read.

    Units:
        known: ids that a table of labels or tokens holds; what can be read and is in none of them
            stays, for its table to be asked for
    """
    lacking = [r for r in records if r.has_photo and any(r.id not in ids for ids in known)]
    lost = {r.id: image for r in lacking if isinstance(image := opened(r), Skipped)}
    tell_skipped(list(lost.values()), "the photos")
    return [r for r in records if r.id not in lost]


def note_of_left_out(left_out: Sequence[Skipped]) -> dict[str, Any]:
    """What a shard notes of the photos that it lacks."""
    return {
        LEFT_OUT: np.array([s.uri for s in left_out], dtype=np.str_),
        REASONS: np.array([s.reason for s in left_out], dtype=np.str_),
    }


def left_out_of(path: Path) -> tuple[Skipped, ...]:
    """The photos that a shard notes as left out."""
    with open_npz(path) as data:
        if LEFT_OUT not in data:
            return ()
        names, reasons = data.rows(LEFT_OUT, REASONS)
    return tuple(Skipped(str(n), str(why)) for n, why in zip(names, reasons, strict=True))


def check_same(path: Path, ids: Sequence[str], left_out: Sequence[Skipped]) -> None:
    """Refuses to label other photos of a shard than it has already.

    Raises:
        FourMError: one cannot be read any more, or can be read now
    """
    with open_npz(path) as data:
        before = [str(i) for i in data["ids"]]
    if before == list(ids):
        return
    lost = [f"{s.uri!r} ({s.reason})" for s in left_out if s.uri in before]
    came = [f"{i!r}" for i in ids if i not in before]
    what = f"cannot be read any more: {lost[0]}" if lost else f"could not be read: {came[0]}"
    raise FourMError(
        f"the labels that {path.parent.parent} has of {path.name} were made when other photos "
        f"could be read; one {what}; make it as it was, or choose another folder"
    )


def check_some(records: Sequence[Record], left_out: Sequence[Skipped]) -> None:
    """Refuses a run of which nothing is left.

    Raises:
        FourMError: no photo can be read
    """
    if records and len(left_out) == len(records):
        raise FourMError(f"none of {len(records)} photos can be read: {left_out[0].reason}")
