"""The photos of any source as one list, and the network's vectors of them.

A folder, a folder with captions.jsonl, tar shards, Parquet and JSONL all become records with a
path; some are learned, the figures are measured on the others. Pictures inside containers are
written out once, so that any of them can be read again. Vectors are written in shards: what is
written is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fourm_lite.add_embedding.options import MIN_HELD_OUT, MIN_PHOTOS, Options
from fourm_lite.data.label_rows import CONTENT, digests, is_stale
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import (
    ConfigError,
    FourMError,
    ShapeError,
    check_choice,
)
from fourm_lite.io.files import write_npz, write_whole
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.records import CAPTIONS, Record, record_of
from fourm_lite.photos.sources import open_sources
from fourm_lite.progress import StageProgress, batches
from fourm_lite.reading.arrays import open_npz
from fourm_lite.reading.regular import budget, read_text
from fourm_lite.unit import Floats

TRAIN, HELD_OUT = "train", "held_out"
LIST, LEFT_OUT = "photos.jsonl", "skipped.jsonl"
Line = TypeVar("Line")


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
    """Lists the photos, writes the list into `folder`, and chooses which are held out.

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
        ConfigError: one is damaged, with its number
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
    named = [name for name in (train, held) if isinstance(name, str)]
    check_choice("a split of the photos", *named, of=sorted(splits))
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


SHARD = 128
PROBE = 4


@dataclass(frozen=True)
class Vectors:
    """The raw vectors of the photos that could be read.

    Shapes:
        values: float32[N, E]; sizes: int64[N, 2], height and width of each photo
    """

    records: tuple[Record, ...]
    values: Floats
    sizes: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...]

    def part(self, name: str) -> Vectors:
        """The vectors of the training or the held-out photos."""
        rows = [i for i, r in enumerate(self.records) if r.split == name]
        records = tuple(self.records[i] for i in rows)
        return Vectors(records, self.values[rows], self.sizes[rows], ())

    @property
    def train(self) -> Vectors:
        """What is learned."""
        return self.part(TRAIN)

    @property
    def held_out(self) -> Vectors:
        """What is measured on."""
        return self.part(HELD_OUT)


def probe(embedder: NetworkEmbedder, records: Sequence[Record]) -> int:
    """The width of the network's vectors, from the first photos that can be read.

    Raises:
        FourMError: no photo can be read; vectors that are NaN, or the same for each photo
        ShapeError: the width differs between photos
    """
    found: list[Floats] = []
    reasons: list[str] = []
    for record in records[:64]:
        try:
            picture = open_rgb(record.read())
        except (FourMError, OSError) as error:
            reasons.append(f"{record.id}: {error}")
            continue
        found.append(_one(embedder, record, picture))
        _check_width(embedder, found[0].shape[1], found[-1], record)
        if len(found) == PROBE:
            break
    if not found:
        raise FourMError(f"none of the first photos can be read; {reasons[0]}")
    if len(found) > 1 and all(np.array_equal(found[0], v) for v in found[1:]):
        raise FourMError(
            f"'{embedder.name}' gives the same vector for different photos; there is nothing to "
            "learn. Look at its preprocessing and its output"
        )
    return found[0].shape[1]


def extract(
    listing: Listing,
    embedder: NetworkEmbedder,
    folder: Path,
    *,
    batch_size: int = 32,
    tell: StageProgress,
) -> None:
    """Writes the vectors of all photos into `folder`, the missing and the stale shards alone.

    Raises:
        FourMError: a vector is NaN or infinite; the photo is named
        ShapeError: the width changes
    """
    records = listing.records
    width: int | None = None
    for start in range(0, len(records), SHARD):
        path = folder / f"shard-{start // SHARD:05d}.npz"
        part = records[start : start + SHARD]
        content = digests(part)
        if not path.is_file() or is_stale(path, content):
            arrays = _shard(part, embedder, batch_size, width)
            width = arrays["values"].shape[1] if len(arrays["values"]) else width
            write_npz(path, {**arrays, CONTENT: content})
        tell("embedding photos", min(start + SHARD, len(records)), len(records))


def read_vectors(listing: Listing, folder: Path) -> Vectors:
    """What `extract` wrote, in the order of the list."""
    by_id = {r.id: r for r in listing.records}
    records, values, sizes, skipped = [], [], [], list(listing.skipped)
    for path in sorted(folder.glob("shard-*.npz")):
        with open_npz(path) as data:
            ids, vectors, shapes = data.rows("ids", "values", "sizes")
            strange = [str(name) for name in ids if str(name) not in by_id]
            if strange:
                raise ConfigError(f"{path} holds {strange[0]!r}, which is none of the photos")
            records += [by_id[str(name)] for name in ids]
            if len(ids):
                values.append(vectors)
                sizes.append(shapes)
            pairs = zip(*data.rows("bad", "reasons"), strict=True)
            skipped += [Skipped(str(uri), str(why)) for uri, why in pairs]
    if not values:
        raise FourMError(f"none of {len(listing.records)} photos can be read: {skipped[0].reason}")
    return Vectors(tuple(records), np.concatenate(values), np.concatenate(sizes), tuple(skipped))


def _shard(
    part: Sequence[Record], embedder: NetworkEmbedder, batch_size: int, width: int | None
) -> dict[str, Any]:
    good: list[Record] = []
    values, sizes = [], []
    bad: list[tuple[str, str]] = []
    for some in batches(part, batch_size):
        pictures, kept = [], []
        for record in some:
            try:
                pictures.append(open_rgb(record.read()))
                kept.append(record)
            except (FourMError, OSError) as error:
                bad.append((str(record.image), str(error)))
        if kept:
            values.append(_embedded(embedder, kept, pictures))
            width = width or values[-1].shape[1]
            _check_width(embedder, width, values[-1], kept[0])
        good += kept
        sizes += [(p.height, p.width) for p in pictures]
    return {
        "ids": np.array([r.id for r in good], dtype=np.str_),
        "values": np.concatenate(values) if values else np.zeros((0, 0), np.float32),
        "sizes": np.array(sizes, np.int64).reshape(-1, 2),
        "bad": np.array([name for name, _ in bad], dtype=np.str_),
        "reasons": np.array([why for _, why in bad], dtype=np.str_),
    }


def _embedded(embedder: NetworkEmbedder, records: Sequence[Record], pictures: list[Any]) -> Floats:
    try:
        return embedder.embed_image(pictures, batch_size=len(pictures), normalize=False)
    except FourMError:
        for record, picture in zip(records, pictures, strict=True):  # which of them was it?
            _one(embedder, record, picture)
        raise


def _one(embedder: NetworkEmbedder, record: Record, picture: Any) -> Floats:
    try:
        return embedder.embed_image([picture], normalize=False)
    except FourMError as error:
        kind = type(error)
        raise kind(f"photo {record.id!r}: {error}") from error


def _check_width(embedder: NetworkEmbedder, width: int, values: Floats, record: Record) -> None:
    if values.shape[1] != width:
        raise ShapeError(
            f"'{embedder.name}' gave vectors of width {width} and then, from photo {record.id!r} "
            f"on, of {values.shape[1]}; an embedding network must keep one width"
        )
