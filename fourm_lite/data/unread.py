"""Photos that cannot be read: left out of what is made of photos, and listed with their reasons.

A shard of labels notes beside its photos which ones it lacks, so that a later run tells of them
too. Whatever is made of one shard has the same photos.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fourm_lite.errors import FourMError
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record, UnreadablePhotoError, tell_skipped
from fourm_lite.reading.arrays import open_npz

T = TypeVar("T")
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


class Replaced:
    """Reads what belongs to photos by number; a photo that has become unreadable is left out.

    The next one that can be read takes its place, so a run goes on, and goes on alike when it is
    resumed. Each is reported once (`photos.records.tell_skipped`); threads may share an object.

    Units:
        count: photos in all; at most one in 20 of them may be lost, and one always
    """

    def __init__(self, count: int) -> None:
        self.count, self.most = count, max(1, count // 20)
        self.lost: dict[int, Skipped] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What another process begins with: it finds out for itself what is lost."""
        return {"count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A lock of its own."""
        self.__init__(state["count"])  # type: ignore[misc]

    def read(self, number: int, read: Callable[[int], T]) -> tuple[int, T]:
        """The first number from this one on that can be read, and what `read` gives for it.

        Raises:
            FourMError: more are lost than may be
        """
        for other in ((number + i) % self.count for i in range(self.count)):
            if other not in self.lost:
                try:
                    return other, read(other)
                except UnreadablePhotoError as error:
                    self._lose(other, error)
        raise FourMError(f"none of {self.count} photos can be read")

    def _lose(self, number: int, error: UnreadablePhotoError) -> None:
        with self._lock:
            if number in self.lost:
                return
            self.lost[number] = Skipped(error.id, str(error))
            tell_skipped([self.lost[number]], "the photos")
            if len(self.lost) > self.most:
                raise FourMError(
                    f"{len(self.lost)} of {self.count} photos have become unreadable while they "
                    f"were trained on, {self.most} may; the last: {error}; bring them back and go "
                    "on from the last checkpoint (--resume)"
                ) from error


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
