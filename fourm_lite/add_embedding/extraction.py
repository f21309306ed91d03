"""The network's vectors of all photos, in shards: what is written is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.add_embedding.listing import HELD_OUT, TRAIN, Listing
from fourm_lite.data.freshness import CONTENT, digests, is_stale
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.io.files import write_npz
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record
from fourm_lite.progress import StageProgress
from fourm_lite.reading.arrays import open_npz

SHARD = 128
PROBE = 4
Floats = npt.NDArray[np.float32]


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
    for start in range(0, len(part), batch_size):
        pictures, kept = [], []
        for record in part[start : start + batch_size]:
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
