"""Photos and captions in any of the forms that they come in, as records.

One function for all verbs and recipes: a list (JSONL, Parquet), a table, a tar, a folder of photos,
a text. A record names a photo and what is known of it; nothing is decoded before it is asked for.
Ids are unique: rows of one photo become one record, and two photos under one id are refused. What
cannot be used is left out and told of by `log`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.errors import FourMError, ReadError, UnknownNameError, suggest
from fourm_lite.modalities.crops import KEY, Mix, mix_of
from fourm_lite.modalities.pictures import ENDINGS as _PICTURES
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.columns import captions_of, text_of
from fourm_lite.photos.item import (
    LINE_ENDINGS,
    PARQUET_ENDINGS,
    TEXT_ENDINGS,
    FileContent,
    Item,
    Skipped,
    Stream,
    is_tar,
)
from fourm_lite.photos.lists import text_lines
from fourm_lite.photos.sources import folder_items, reader_of
from fourm_lite.photos.table_rows import Naming, is_lance
from fourm_lite.reading.regular import read_photo
from fourm_lite.reading.remote import place as place_of

log = logging.getLogger(__name__)

CAPTIONS = "captions.jsonl"
ENDINGS = frozenset(_PICTURES.split())
TOLD = 20
"""How many left-out rows are logged one by one."""
_LABELS = ("label", "labels")
_HEARD: ContextVar[list[Skipped] | None] = ContextVar("heard", default=None)


@dataclass(frozen=True)
class Record:
    """One photo with its captions, as a list of captions has it.

    Units:
        image: a file, or its bytes; b"" where there is a caption and no photo
        fields: the other entries of its line, as they stand
        mix: what is mixed into the photo (`mixtures`), or None
    """

    id: str
    image: Path | bytes
    captions: tuple[str, ...] = ()
    split: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mix: Mix | None = None

    @property
    def has_photo(self) -> bool:
        """Whether there is a photo, and not captions alone."""
        return self.image != b""

    def read(self) -> bytes:
        """The bytes of the photo.

        Raises:
            OSError: its file is gone or may not be read
        """
        return self.image if isinstance(self.image, bytes) else read_photo(self.image)

    def open_image(self) -> Any:
        """The photo, or the mixture, as an upright RGB PIL picture; see `pictures.open_rgb`.

        Raises:
            UnreadablePhotoError: it is not a readable picture
        """
        try:
            photo = open_rgb(self.read())
            return photo if self.mix is None else self.mix.join(photo)
        except (OSError, FourMError) as error:
            raise UnreadablePhotoError(
                f"cannot read the picture of {self.id!r}: {error}", self.id
            ) from error


class UnreadablePhotoError(ReadError):
    """A photo of a record is gone or no picture; `id` is the record's."""

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True)
class Listing:
    """The records of a source, and what was left out."""

    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...] = ()

    def of_split(self, split: str | None) -> Listing:
        """The records of one split, or all; each id once.

        Raises:
            UnknownNameError: no record is of that split
            FourMError: two photos have one id
        """
        records = choose_split(self.records, split) if split else self.records
        return Listing(tuple(unique(records)), self.skipped)


def read_listing(path: str | Path, *, split: str | None = None) -> Listing:
    """The records of a source, each id once, and what was left out.

    Args:
        path: a JSONL or Parquet list; a table of LanceDB; a tar; a folder that holds
            captions.jsonl; a folder of photos; or captions alone, one a line, in a .txt or .txt.gz
            file
        split: of a list; folders and texts know no splits and are taken whole

    Raises:
        FourMError: the source is of no such form, holds nothing, or two photos have one id
        UnknownNameError: the list has no such split
    """
    place = place_of(path)
    listing = list_records(place)
    has_splits = not place.name.lower().endswith(TEXT_ENDINGS) and listing_file(place) is not None
    return listing.of_split(split if has_splits else None)


def read_records(path: str | Path, *, split: str | None = None) -> list[Record]:
    """The records of `read_listing`; what was left out is logged."""
    return _told(read_listing(path, split=split), path)


def read_caption_list(
    path: Path,
    *,
    split: str | None = None,
    id_key: str = "id",
    image_key: str = "file",
    captions_key: str = "captions",
) -> list[Record]:
    """Records of a JSONL or Parquet file; picture paths are relative to the file.

    A caption entry may be one string or several; Parquet may hold the picture's bytes itself. Rows
    that cannot be used are left out and told of.

    Args:
        path: the list
        split: which of its splits; without it, all
        id_key: names the id; "id" stands for the usual names
        image_key: names the picture; "file" stands for the usual names
        captions_key: names the captions

    Raises:
        FourMError: the file is missing, no row can be used, or two photos have one id
        UnknownNameError: the list has no such split
    """
    path = Path(path)
    if not path.is_file():
        raise FourMError(f"expected a caption list (.jsonl or .parquet), found no file at {path}")
    naming = _naming(id_key, image_key)
    return _told(_list(path, naming, captions_key).of_split(split), path)


def list_records(path: Path) -> Listing:
    """All rows of a source as they stand, ids unchecked, and what was left out.

    Raises:
        FourMError: the source is of no known form, or holds nothing that can be used
    """
    place = place_of(path)
    file = listing_file(place)
    if file is not None:
        return _list(file, _naming("id", "file"), "captions")
    if place.name.lower().endswith(TEXT_ENDINGS):
        return _texts(place)
    if not place.is_dir():
        raise FourMError(
            "expected a folder of photos, a .jsonl, .parquet or .tar file, or a .txt or .txt.gz of "
            f"captions, got {place}"
        )
    listing = as_records(folder_items(place, tars=False))
    if not listing.records:
        raise FourMError(
            f"{place} holds no photos; known endings: {', '.join(sorted(ENDINGS))}"
            f"{_first_reason(listing.skipped)}"
        )
    return listing


def listing_file(place: Path) -> Path | None:
    """The list, tar or table of photos at a place; None for a folder and a text."""
    if place.is_dir():
        own = place / CAPTIONS
        return own if own.is_file() else place if is_lance(place) else None
    name = place.name.lower()
    return place if name.endswith((*LINE_ENDINGS, *PARQUET_ENDINGS)) or is_tar(name) else None


def as_records(items: Stream, captions_key: str = "captions", folder: Path = Path()) -> Listing:
    """Items as records; what cannot be one is left out with its reason."""
    records: list[Record] = []
    skipped: list[Skipped] = []
    for item in items:
        one = item if isinstance(item, Skipped) else record_of(item, captions_key, folder)
        (skipped if isinstance(one, Skipped) else records).append(one)  # type: ignore[arg-type]
    return Listing(tuple(records), tuple(skipped))


def record_of(
    item: Item, captions_key: str = "captions", folder: Path = Path()
) -> Record | Skipped:
    """An item as a record, or why it cannot be one."""
    if item.beside:
        return Skipped(item.uri, f"is a second picture of the sample {item.beside!r}")
    row = {**item.columns, **item.fields}
    try:
        captions = captions_of(row.get(captions_key, row.get("caption", row.get("captions"))))
        split = text_of(row.get("split"))
        mix = mix_of(row, folder)
    except (ValueError, FourMError) as error:
        return Skipped(item.uri, str(error))
    rest = {k: v for k, v in item.fields.items() if k not in (captions_key, "split", KEY)}
    return Record(item.key, image_of(item.read), captions, split, rest, mix)


def unique(records: Iterable[Record]) -> list[Record]:
    """The records, each id once: rows of one photo become one record with all their captions.

    Raises:
        FourMError: two photos have one id
    """
    found: dict[str, Record] = {}
    for record in records:
        first = found.get(record.id)
        found[record.id] = record if first is None else _one(first, record)
    return list(found.values())


def by_photo(records: Iterable[Record]) -> list[Record]:
    """The records, each photo once, under its first id: lists may give an id to every caption."""
    found: dict[Any, Record] = {}
    for record in records:
        key = (record.image, record.split, record.mix) if record.has_photo else record.id
        first = found.get(key)
        found[key] = record if first is None else _with_captions(first, record)
    return list(found.values())


def choose_split(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split; "all" names all splits where no split is called so.

    Raises:
        UnknownNameError: no record is of that split
    """
    out = [r for r in records if r.split == split]
    if not out and split == "all":
        return list(records)
    if not out:
        known = sorted({r.split for r in records})
        there = f"there are {known}" if any(known) else "none names a split"
        raise UnknownNameError(
            f"no record is of the split {split!r}, {there}; 'all' takes every one "
            f"(--split all).{suggest(split, known)}"
        )
    return out


def read_spoken(path: str | Path, *, split: str | None = None) -> list[Record]:
    """The captions of a source as texts of their own: one record each, no photo.

    Raises:
        as `read_records`; FourMError: a record has no caption
    """
    records = read_records(path, split=split)
    silent = [r.id for r in records if not r.captions]
    if silent:
        raise FourMError(f"{len(silent)} records of {path} have no caption, such as {silent[0]!r}")
    if not any(r.has_photo for r in records):
        return records
    return [Record(f"{r.id}#{k}", b"", (c,)) for r in records for k, c in enumerate(r.captions)]


@contextmanager
def hearing() -> Iterator[list[Skipped]]:
    """A list that `tell_skipped` fills while this is open, for a verb to show."""
    heard: list[Skipped] = []
    before = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(before)


def tell_skipped(skipped: Sequence[Skipped], where: Any) -> None:
    """Logs what was left out of a source, and adds it to the list of `hearing`."""
    if (heard := _HEARD.get()) is not None:
        heard += [one for one in skipped if one not in heard]
    for one in skipped[:TOLD]:
        log.warning("left out: %s: %s", one.uri, one.reason)
    if len(skipped) > TOLD:
        log.warning("left out: %d more of %s", len(skipped) - TOLD, where)


# Inside --------------------------------------------------------------------------------------


def _naming(id_key: str, image_key: str) -> Naming:
    # Lists that somebody trains on are his own, so they may name any file.
    return Naming("" if id_key == "id" else id_key, "" if image_key == "file" else image_key, True)


def _list(path: Path, naming: Naming, captions_key: str) -> Listing:
    listing = as_records(reader_of(path, naming)(path), captions_key, path.parent)
    if not listing.records:
        if not listing.skipped:
            raise FourMError(f"{path} holds no line; give a list with at least one photo")
        raise FourMError(f"{path} names no photo{_first_reason(listing.skipped)}")
    return listing


def _first_reason(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return ""
    row = skipped[0].uri.rpartition(":")[2]
    where = f"row {row}" if row.isdigit() else skipped[0].uri
    return f"; left out: {len(skipped)}, the first: {where} {skipped[0].reason}"


def _texts(path: Path) -> Listing:
    lines = text_lines(path)
    texts = [line[1] for line in lines if not isinstance(line, Skipped)]
    if not texts:
        raise FourMError(f"{path} holds no captions; give a text with one caption a line")
    # The hash makes the ids, and with them a run's fingerprint, tell these captions from others.
    records = (
        Record(f"{i:06d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}", b"", (text,))
        for i, text in enumerate(texts)
    )
    return Listing(tuple(records), tuple(line for line in lines if isinstance(line, Skipped)))


def image_of(read: Callable[[], bytes]) -> Path | bytes:
    """What a record keeps of a picture: where its file is, or its bytes."""
    return read.path if isinstance(read, FileContent) else read()


def _one(first: Record, second: Record) -> Record:
    same = (first.image, first.split, first.mix) == (second.image, second.split, second.mix)
    labels = ([r.fields.get(name) for name in _LABELS] for r in (first, second))
    if not same or next(labels) != next(labels):
        both = " and ".join(_place(r) for r in (first, second))
        raise FourMError(
            f"the id {first.id!r} stands for two photos or rows ({both}), and labels, tokens and "
            "captions are found by it; give each photo an id (or a name) of its own"
        )
    return _with_captions(first, second)


def _with_captions(first: Record, second: Record) -> Record:
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    return dataclasses.replace(first, captions=captions)


def _place(record: Record) -> str:
    where = str(record.image) if isinstance(record.image, Path) else f"{len(record.image)} bytes"
    return f"{where}, split {record.split!r}" if record.split else where


def _told(listing: Listing, where: Any) -> list[Record]:
    tell_skipped(listing.skipped, where)
    return list(listing.records)
