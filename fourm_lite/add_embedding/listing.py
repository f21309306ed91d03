"""The photos of any source as one list: what is learned and what the figures are measured on.

A folder, a folder with captions.jsonl, tar shards, Parquet and JSONL all become records with a
path. Pictures inside containers are written out once, so that any of them can be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fourm_lite.add_embedding.options import MIN_HELD_OUT, MIN_PHOTOS, Options
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError, suggest
from fourm_lite.io.files import write_whole
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.records import Record, record_of
from fourm_lite.photos.sources import open_sources
from fourm_lite.progress import StageProgress
from fourm_lite.reading.regular import budget, read_text

CAPTIONS = "captions.jsonl"
TRAIN, HELD_OUT = "train", "held_out"
LIST, LEFT_OUT = "photos.jsonl", "skipped.jsonl"
Line = TypeVar("Line")
"""Called with (what is done, done, in all); 0 in all is not known."""


@dataclass(frozen=True)
class Listing:
    """The photos of a run; `split` of a record is "train" or "held_out"."""

    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]

    def part(self, name: str) -> list[Record]:
        """The records of one part."""
        return [r for r in self.records if r.split == name]


def source_paths(photos: str | Path | Sequence[str | Path]) -> list[Path]:
    """Where the photos lie; of a folder with captions.jsonl, this file.

    Raises:
        ConfigError: nothing is given, or a path is not there
    """
    given = [photos] if isinstance(photos, str | Path) else list(photos)
    if not given:
        raise ConfigError("give at least one folder or file of photos")
    places = [Path(os.path.abspath(Path(path).expanduser())) for path in given]
    for place in places:
        if not place.exists():
            raise ConfigError(f"expected photos at {place}, and there is nothing")
    return [p / CAPTIONS if (p / CAPTIONS).is_file() else p for p in places]


def list_photos(
    paths: Sequence[Path], options: Options, folder: Path, tell: StageProgress
) -> Listing:
    """Lists the photos, writes the list into `folder`, and says which are held out.

    Raises:
        ConfigError: no photo, too few of them, or no such split
    """
    if (folder / LIST).is_file():
        return read_listing(folder)
    found: list[Record] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for item in open_sources(paths):
        record = _record(item, seen)
        if isinstance(record, Skipped):
            skipped.append(record)
            continue
        seen.add(record.id)
        found.append(_written(record, folder / "pictures", len(found)))
        if len(found) % 500 == 0:
            tell("listing photos", len(found), 0)
    listing = Listing(tuple(_parted(found, options)), tuple(skipped))
    _check_counts(listing, paths)
    _write(folder, listing)
    return listing


def read_listing(folder: Path) -> Listing:
    """The list behind `list_photos`."""
    records = (
        Record(r.id, Path(r.image), r.captions, r.part) for r in _lines(folder / LIST, _Listed)
    )
    left = (Skipped(r.uri, r.reason) for r in _lines(folder / LEFT_OUT, _LeftOut))
    return Listing(tuple(records), tuple(left))


@dataclass(frozen=True)
class _Listed:
    """A line of the list."""

    id: str
    image: str
    captions: tuple[str, ...]
    part: str


@dataclass(frozen=True)
class _LeftOut:
    """A line of what was left out."""

    uri: str
    reason: str


def _lines(path: Path, form: type[Line]) -> Iterator[Line]:
    """The lines of a list that `_write` wrote.

    Raises:
        ConfigError: one is damaged; its number is told
    """
    for number, line in enumerate(read_text(path, most=budget().bytes).split("\n"), start=1):
        if line:
            try:
                yield from_dict(form, as_object(parse_json(line, "it"), "it"))
            except FourMError as error:
                raise ConfigError(
                    f"{path} is damaged in line {number}: {error}; choose another folder"
                ) from error


def _record(item: Item | Skipped, seen: Container[str]) -> Record | Skipped:
    """An item as a record under the id that an index gives it; or why it is left out."""
    if isinstance(item, Skipped):
        return item
    if item.id in seen:
        return Skipped(item.uri, f"the id {item.id!r} came before; rename one")
    record = record_of(item)
    if isinstance(record, Record) and record.mix is not None:
        return Skipped(item.uri, "is a mixture of photos; give the photos")
    return record if isinstance(record, Skipped) else replace(record, id=item.id)


def _written(record: Record, folder: Path, number: int) -> Record:
    """The record with a path; the bytes of a container's member are written out."""
    if isinstance(record.image, Path):
        return record
    path = folder / f"{number:07d}.picture"
    write_whole(path, record.image, sync=False)
    return replace(record, image=path)


def _parted(records: Sequence[Record], options: Options) -> list[Record]:
    splits = {r.split for r in records}
    train = options.split or ("train" if "train" in splits else None)
    held: str | float | None = options.held_out
    if held is None:
        held = "val" if train is not None and train != "val" and "val" in splits else 0.1
    for name in (train, held):
        if isinstance(name, str) and name not in splits:
            raise UnknownNameError(
                f"no photo is of the split {name!r}; there are {sorted(splits)}."
                + suggest(name, splits)
            )
    if held == train:
        raise ConfigError(f"the split {held!r} cannot be both learned and measured on")
    chosen = [r for r in records if train is None or r.split == train]
    if isinstance(held, str):
        measured = [r for r in records if r.split == held]
        chosen = [r for r in chosen if r.split != held]
    else:
        count = max(MIN_HELD_OUT, round(held * len(chosen)))
        names = {r.id for r in _drawn(chosen, count, options.seed)}
        measured = [r for r in chosen if r.id in names]
        chosen = [r for r in chosen if r.id not in names]
    keep = {r.id for r in _drawn(measured, options.max_held_out, options.seed)}
    return [
        *(Record(r.id, r.image, r.captions, TRAIN) for r in chosen),
        *(Record(r.id, r.image, r.captions, HELD_OUT) for r in measured if r.id in keep),
    ]


def _drawn(records: Iterable[Record], count: int, seed: int) -> list[Record]:
    """Some of the records, by a hash of their ids: the same ones whatever else the list holds."""
    return sorted(records, key=lambda r: hashlib.sha256(f"{seed}:{r.id}".encode()).digest())[:count]


def _check_counts(listing: Listing, paths: Sequence[Path]) -> None:
    train, held = len(listing.part(TRAIN)), len(listing.part(HELD_OUT))
    where = ", ".join(map(str, paths))
    if not train:
        first = f"; the first: {listing.skipped[0].reason}" if listing.skipped else ""
        raise ConfigError(
            f"expected photos in {where}, found none ({len(listing.skipped)} files were left "
            f"out{first})"
        )
    if train < MIN_PHOTOS or held < MIN_HELD_OUT:
        raise ConfigError(
            f"expected at least {MIN_PHOTOS} photos to learn from and {MIN_HELD_OUT} to measure "
            f"on, {where} gives {train} and {held}; add photos"
        )


def _write(folder: Path, listing: Listing) -> None:
    rows = [
        {"id": r.id, "image": str(r.image), "captions": list(r.captions), "part": r.split}
        for r in listing.records
    ]
    left = [{"uri": s.uri, "reason": s.reason} for s in listing.skipped]
    for name, lines in ((LEFT_OUT, left), (LIST, rows)):  # the list last: it says all is written
        write_whole(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
