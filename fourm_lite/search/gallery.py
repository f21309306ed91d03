"""From pictures, their region features, or items to an index that is searched: made and continued.

The manifest of an index says which model made its rows, so that a later run continues with the
same one and a search refuses another space. Items of modalities and values come from lists (JSON
lines) and from folders, where a file is one value: its modality is the name of a folder above it,
or follows from what the file holds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fourm_lite.embedders.base import Reads
from fourm_lite.embedders.feature_files import found_in, pack, unpack
from fourm_lite.embedders.features import FeatureStore
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.names import is_inside
from fourm_lite.photos.columns import photo_facts
from fourm_lite.photos.item import (
    LINE_ENDINGS,
    HeldContent,
    Item,
    Skipped,
    Stream,
    is_picture,
    printable,
    suffix_of,
)
from fourm_lite.photos.lists import json_rows
from fourm_lite.photos.source_parts import Part, parts_of, parts_of_stream
from fourm_lite.photos.sources import open_sources, prefixed
from fourm_lite.photos.table_rows import ID_COLUMNS
from fourm_lite.reading.remote import expand, is_remote
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import Embed, IngestReport, index_items
from fourm_lite.search.index.loading import KnownRows, Loader, no_facts
from fourm_lite.search.index.manifest import allow, read_manifest
from fourm_lite.search.scale import Engine, Job, index_parts_on
from fourm_lite.search.space import PICTURE, Space

ARRAYS = (".npy", ".npz")
REGIONS = (*ARRAYS, ".tsv")
"""Endings of files that may hold region features."""


def open_value_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of lists and folders, one source after the other.

    Args:
        paths: .jsonl lists of items, folders of tiles (GeoTIFF) and arrays, single files
        prefix: put before every id

    Raises:
        ConfigError: a path is not there or of a kind that is not read; said before the first item
    """
    places = [Path(path).expanduser().absolute() for path in paths]
    for place in places:
        name = place.name.lower()
        if not place.exists() or not (place.is_dir() or name.endswith(LINE_ENDINGS) or _is(place)):
            raise ConfigError(
                f"{place} is no source of items; give a list (.jsonl of modality and value), a "
                "folder of GeoTIFF tiles or .npz arrays, or one such file"
            )
    return prefixed((item for place in places for item in _items(place)), prefix)


def _items(place: Path) -> Iterator[Item | Skipped]:
    if place.name.lower().endswith(LINE_ENDINGS):
        yield from listed_items(place)
    elif place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.is_file() and _is(p)):
            yield _file_item(file, file.relative_to(place).as_posix())
    else:
        yield _file_item(place, place.name)


def _is(file: Path) -> bool:
    return is_picture(file.name) or suffix_of(file.name) in ARRAYS


def _file_item(file: Path, name: str) -> Item:
    """A file under the name of a picture, whatever it turns out to hold."""
    status = file.stat()
    values = {PICTURE: [str(file), status.st_size, status.st_mtime_ns]}
    content = HeldContent(json.dumps(values).encode())
    return Item(printable(name), printable(str(file)), content)


def listed_items(place: Path) -> Stream:
    """The items of a list (JSON lines of modality and value); their bytes are JSON."""
    for row in json_rows(place):
        if isinstance(row, Skipped):
            yield row
            continue
        number, fields = row
        key = next((k for k in ID_COLUMNS if isinstance(fields.get(k), str | int)), "")
        name = str(fields[key]) if key else f"{place.name.split('.')[0]}/{number}"
        values = {k: _given(place.parent, v) for k, v in fields.items() if k != key}
        uri = f"{printable(str(place))}:{number}"
        yield Item(name, uri, HeldContent(json.dumps(values).encode()))


def _given(folder: Path, value: Any) -> Any:
    """A value; the name of a file below the list's folder with what tells it from another one."""
    if not isinstance(value, str) or not 0 < len(value) < 4096 or not is_inside(value):
        return value
    file = folder / value
    try:
        status = file.stat() if file.is_file() else None
    except (OSError, ValueError):
        return value
    return value if status is None else [str(file), status.st_size, status.st_mtime_ns]


def item_of(data: bytes) -> dict[str, Any]:
    """What an item's bytes hold: modality -> value, files as paths."""
    values = as_object(parse_json(data.decode(), "the item"), "the item")
    return {k: Path(v[0]) if isinstance(v, list) and len(v) == 3 else v for k, v in values.items()}


def open_feature_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of every store of features, one after the other; their bytes are an .npz.

    Args:
        paths: folders and files that `FeatureStore.open` takes
        prefix: put before every id, so that two stores with equal ids keep apart

    Raises:
        ConfigError: a path holds no features; said before the first item
    """
    # Absolute, because a row outlives the folder that it was indexed from.
    stores = [FeatureStore.open(Path(path).expanduser().absolute()) for path in paths]
    return (
        Item(prefix + printable(key), printable(store.where(key)), partial(_read, store, key))
        for store in stores
        for key in store
    )


def _read(store: FeatureStore, key: str) -> bytes:
    try:
        return pack(store[key])
    except FourMError as error:
        # a reader of items skips what cannot be read and says why
        raise OSError(0, str(error)) from error


SOURCES: dict[Reads, tuple[Callable[..., Stream], Callable[[bytes], Any] | None]] = {
    "pictures": (open_sources, None),
    "regions": (open_feature_sources, unpack),
    "items": (open_value_sources, item_of),
}
"""By what a space reads: what lists its items, and what opens their bytes."""


@dataclass(frozen=True)
class Ingest:
    """How pictures are read and embedded; see `search.index.ingest.index_items`."""

    workers: int = 1
    batch_size: int = 32
    commit_rows: int = 512
    prune: bool = False
    prefix: str = ""
    gps: bool = False


def open_index(
    path: str | Path, space: Space, *, codes_only: bool = False, licence: str | None = None
) -> Index:
    """The index at a path, made if it is not there, checked against the space if it is.

    Raises:
        ConfigError: the index was made by another model, network or tokenizer
        ShapeError: the gallery's network gives vectors of another width than the target's
    """
    manifest = read_manifest(str(Path(path).expanduser()) if "://" not in str(path) else str(path))
    decode = space.decoder
    if manifest is not None:
        manifest.require_space(space.name)
        manifest.require_fingerprints(space.fingerprints, lambda n: space.former_fingerprints(n))
        if codes_only != (manifest.kind == "codes"):
            raise ConfigError(
                f"the index at {path} holds {manifest.kind}; choose another place for the other"
            )
        return Index.open(path, decode=decode)
    if codes_only and space.codebook_size is None:
        raise ConfigError(f"'{space.name}' has no codes; a codes-only index needs a 4M model")
    space.check_gallery()
    facts = space.provenance()
    extra = facts.get("extra", {})
    allow([facts.get("model"), extra.get("tokenizers"), extra.get("text_tokenizer")])
    return Index.create(
        path, space=space.name, decode=decode, kind="codes" if codes_only else "vectors",
        width=space.width, codebook_size=space.codebook_size, licence=licence,
        fingerprints=space.fingerprints, **facts,
    )  # fmt: skip


def index_photos(
    photos: Iterable[str | Path],
    index: Index,
    space: Space,
    how: Ingest | None = None,
    *,
    engine: Engine | None = None,
    progress: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Brings an index up to date with folders, tars, Parquet or JSONL; run it again to continue.

    Args:
        photos: see `photos.sources.open_sources`; for a space that reads regions, stores of
            region features
        index: from `open_index`
        space: what embeds the pictures
        how: threads, batch size, what happens to rows whose picture is gone, whether columns tell
            where photos were taken
        engine: the cluster whose processes embed; this one without it. Sources and index are where
            all of its machines see them, and its processes read with two threads each
        progress: called after every block, or part

    Raises:
        ConfigError: no row is in the index, because the sources hold nothing that can be read; or
            its rows were made by another model, network or tokenizer
    """
    how = how or Ingest()
    index.renew_fingerprints(space.fingerprints, lambda n: space.former_fingerprints(n))
    codes_only, places = index.manifest.kind == "codes", expand(photos)
    reader, decode = SOURCES[space.reads][0], decode_of(space)
    if engine is None:
        report = index_items(
            reader(places, prefix=how.prefix), embed_of(space, codes_only, how.batch_size), index,
            batch_size=how.batch_size, commit_rows=how.commit_rows, workers=how.workers,
            prune=how.prune, short_side=space.short_side, decode=decode,
            facts=partial(photo_facts, gps=how.gps), progress=progress,
        )  # fmt: skip
    else:
        ways = partial(_ways, codes_only, how.batch_size)
        opened = partial(reading, engine.open_space, ways, how.gps)
        told = str((sorted(index.manifest.fingerprints.items()), codes_only, how.gps))
        job, parts = Job(index.path, opened, told, how.batch_size), parts_for(space, places, how)
        report, _ = index_parts_on(
            engine.cluster, parts, index, job, prune=how.prune, progress=progress
        )
    if not len(index):
        raise ConfigError(nothing_in(places, report.unreadable))
    index.prepare_search()
    return report


def decode_of(space: Space) -> Callable[[bytes], Any] | None:
    """What opens the bytes of an item for a space; None: they are a picture."""
    return space.opener or SOURCES[space.reads][1]


def parts_for(space: Space, places: list[Path], how: Ingest) -> Iterator[Part]:
    """What a space reads, in parts."""
    if space.reads == "pictures":
        return parts_of(places, how.prefix)
    return parts_of_stream(SOURCES[space.reads][0](places, prefix=how.prefix))


Ways = Callable[[Space], tuple[Embed, Callable[[bytes], Any] | None]]
"""What embeds items for a space, and what opens their bytes; None: they are a picture."""


def reading(
    open_space: Callable[[], Space], ways: Ways, gps: bool = False
) -> tuple[Embed, Callable[[KnownRows], Loader]]:
    """What embeds and what reads, in a process of its own."""
    space = open_space()
    embed, decode = ways(space)
    facts = partial(photo_facts, gps=gps) if decode is None else no_facts
    read = decode or partial(open_rgb, short_side=space.short_side)
    return embed, lambda known: Loader(known.get, read, facts)


def _ways(only_codes: bool, batch_size: int, space: Space) -> tuple[Embed, Any]:
    return embed_of(space, only_codes, batch_size), decode_of(space)


def embed_of(space: Space, only_codes: bool, batch_size: int) -> Embed:
    """What makes vectors, and codes where the space has them, of pictures."""

    def embed(pictures: list[Any]) -> Any:
        vectors, codes = space.encode_document(pictures, batch_size=batch_size)
        if codes is None:
            return vectors
        return codes if only_codes else (vectors, codes)

    return embed


def nothing_in(places: Iterable[Path], left_out: Sequence[Skipped]) -> str:
    """What the sources hold instead of pictures that can be read."""
    if left_out:
        reasons = Counter(one.reason for one in left_out).most_common(3)
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        where = ", ".join(map(str, places))
        return f"none of {len(left_out)} photos in {where} can be read: {told}"
    folders = list(places)
    held = {f: found_in(f) for f in folders if not is_remote(f) and f.is_dir()}
    told = "; ".join(f"{folder} holds {what}" for folder, what in held.items())
    hint = "name a folder, a picture, a .tar, .parquet or .jsonl list with photos"
    if any(ending in what for what in held.values() for ending in REGIONS):
        hint += "; arrays of region features are read by --model mmt:FOLDER"
    where = told or f"nothing in {', '.join(map(str, folders))} is one"
    return f"there is no photo to index: {where}; {hint}"
