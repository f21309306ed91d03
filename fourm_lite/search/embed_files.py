"""Vectors of photos, texts or items as one file, in the order of what was given, with their ids.

Unusual: while a run goes on its vectors lie in an index beside the file (`OUT.draft`), so that a
run which was stopped goes on as `index` does, and what one refuses the other refuses too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import remove_folder, replacing, replacing_folder, write_json
from fourm_lite.photos.item import (
    LINE_ENDINGS,
    TEXT_ENDINGS,
    HeldContent,
    Item,
    Skipped,
    Stream,
    is_tar,
    printable,
)
from fourm_lite.photos.lists import json_rows, text_lines
from fourm_lite.photos.source_parts import Part, parts_of_stream
from fourm_lite.photos.table_rows import FILE_COLUMNS
from fourm_lite.reading.remote import expand, is_remote
from fourm_lite.search.gallery import (
    SOURCES,
    Ingest,
    decode_of,
    item_of,
    listed_items,
    open_index,
    parts_for,
    reading,
)
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import Embed, IngestReport, index_items
from fourm_lite.search.index.loading import Decode, Keys, key_of
from fourm_lite.search.scale import Engine, Job, index_parts_on
from fourm_lite.search.space import TEXT, Space
from fourm_lite.search.vectors import IDS_BESIDE

MARK = "embed.json"
"""In the folder of a draft: that it is one, and may be removed."""
CHUNK = 8192
FORMS = (".npy", ".parquet", ".lance")

Progress = Callable[[IngestReport, int], object]


@dataclass(frozen=True)
class Embedded:
    """What `embed_to_file` wrote.

    Units:
        rows, width: of the vectors; left_out: what of the sources has none, with the reason
    """

    path: Path
    space: str
    rows: int
    width: int
    left_out: list[Skipped] = field(default_factory=list)


def embed_to_file(
    sources: Iterable[str | Path],
    out: str | Path,
    space: Space,
    how: Ingest | None = None,
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Writes the unit vectors of all sources to one file; run it again to continue.

    Args:
        sources: photos as for an index; or texts, one a line (.txt, .txt.gz); or items, JSON lines
            of modality -> value (.jsonl without photos' files). One kind in one call
        out: NAME.npy (float32[N, E]; ids go to NAME.ids.jsonl), NAME.parquet or NAME.lance (columns
            id, uri, vector)
        space: what embeds
        how: threads, batch size, rows a commit, what is put before ids
        engine: as for `index_photos`
        progress: called after every block with the report so far and the total, 0 where unknown

    Raises:
        ConfigError: another ending, sources of several kinds or without anything to embed, or a
            draft of another model stands beside the file
    """
    how, path = how or Ingest(), check_form(out)
    places = expand(sources)
    kind = _kind_of(places, space, how.prefix)
    total = kind.count()
    ways = partial(_ways, kind.name, how.batch_size)

    def told(report: IngestReport) -> None:
        if progress is not None:
            progress(report, total)

    with _draft(path, space) as draft:
        if engine is None:
            order: list[str] = []
            embed, decode = ways(space)
            report = index_items(
                _noted(kind.items(), order), embed, draft,
                batch_size=how.batch_size, commit_rows=how.commit_rows, workers=how.workers,
                short_side=space.short_side, decode=decode, progress=told,
            )  # fmt: skip
        else:
            asked = str((kind.name, sorted(space.fingerprints.items())))
            opened = partial(reading, engine.open_space, ways)
            job = Job(draft.path, opened, asked, how.batch_size)
            report, keys = index_parts_on(engine.cluster, kind.parts(), draft, job, progress=told)
            order = _in_order(draft, keys)
        ids = _there(draft, order)
        if not ids:
            reason = f"; the first: {report.unreadable[0].reason}" if report.unreadable else ""
            raise ConfigError(f"there is nothing to embed in {', '.join(map(str, places))}{reason}")
        write_vectors(draft, ids, path)
        width = int(draft.width or 0)
    remove_folder(Path(draft.path))
    return Embedded(path, space.name, len(ids), width, report.unreadable)


def check_form(out: str | Path) -> Path:
    """The file, if its ending is one that is written.

    Raises:
        ConfigError: it is not
    """
    path = Path(out).expanduser()
    if path.suffix not in FORMS:
        raise ConfigError(f"vectors are written to {', '.join(FORMS)}, got {path.name}; rename it")
    return path


def write_vectors(index: Index, ids: Sequence[str], path: Path) -> None:
    """Writes rows of an index as one file, by so many at once as fit a little memory.

    Raises:
        StorageError: it cannot be written; what stood there before still does
    """
    if path.suffix == ".npy":
        _write_npy(index, ids, path)
    elif path.suffix == ".parquet":
        _write_parquet(index, ids, path)
    else:
        import lance
        import pyarrow as pa

        batches = _batches(index, ids)
        first = next(batches)
        reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))
        with replacing_folder(path) as draft:
            lance.write_dataset(reader, draft, mode="overwrite")


# What is embedded ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """Sources of one kind: how they are listed, whole or in parts."""

    name: str
    items: Callable[[], Stream]
    parts: Callable[[], Iterator[Part]]
    countable: bool = True

    def count(self) -> int:
        """How many there are; 0 where that would mean to read archives."""
        return sum(1 for _ in self.items()) if self.countable else 0


def _kind_of(places: list[Path], space: Space, prefix: str) -> _Kind:
    kinds = {"photos" if space.reads == "items" else _name_of(place) for place in places}
    if len(kinds) != 1:
        told = " and ".join(sorted(kinds)) or "nothing"
        raise ConfigError(f"photos, texts or items are embedded, one kind a file; got {told}")
    name = kinds.pop()
    each = _texts if name == "texts" else listed_items

    def listed() -> Stream:
        for place in places:
            for one in each(place):
                yield dataclasses.replace(one, id=prefix + one.id) if isinstance(one, Item) else one

    if name != "photos":
        return _Kind(name, listed, lambda: parts_of_stream(listed()))
    reader, how = SOURCES[space.reads][0], Ingest(prefix=prefix)
    plain = not any(is_tar(place.name) or is_remote(place) for place in places)
    return _Kind(
        name, lambda: reader(places, prefix=prefix), lambda: parts_for(space, places, how), plain
    )


def _ways(kind: str, batch_size: int, space: Space) -> tuple[Embed, Decode | None]:
    """What embeds items of a kind, and what opens their bytes."""
    ways = {"photos": decode_of(space), "texts": _text_of, "items": item_of}
    decode: Decode | None = ways[kind]
    if kind == "photos":
        return lambda photos: space.encode_document(photos, batch_size=batch_size)[0], decode
    return lambda values: space.encode_query(values, batch_size=batch_size), decode


def _in_order(index: Index, keys: Keys) -> list[str]:
    """The ids of an index in the order of their hashes."""
    ids = [name for batch in index.scan(["id"]) for name in batch.column(0).to_pylist()]
    place = {key: number for number, key in enumerate(keys.tolist())}
    return sorted((i for i in ids if key_of(i) in place), key=lambda i: place[key_of(i)])


def _name_of(place: Path) -> str:
    name = place.name.lower()
    if name.endswith(TEXT_ENDINGS):
        return "texts"
    if not name.endswith(LINE_ENDINGS) or not (is_remote(place) or place.is_file()):
        return "photos"
    first = next((row[1] for row in json_rows(place) if not isinstance(row, Skipped)), {})
    return "photos" if any(key in first for key in FILE_COLUMNS) else "items"


def _texts(place: Path) -> Stream:
    for line in text_lines(place):
        if isinstance(line, Skipped):
            yield line
            continue
        number, text = line
        uri = f"{printable(str(place))}:{number}"
        yield Item(f"{place.name.split('.')[0]}/{number}", uri, HeldContent(text.encode()))


def _text_of(data: bytes) -> dict[str, Any]:
    return {TEXT: data.decode()}


def _noted(stream: Stream, order: list[str]) -> Iterator[Item | Skipped]:
    for one in stream:
        if isinstance(one, Item):
            order.append(one.id)
        yield one


# How it is written ---------------------------------------------------------------------------


@contextmanager
def _draft(path: Path, space: Space) -> Iterator[Index]:
    """The index beside a file in which its vectors wait; one without rows goes with an error.

    Raises:
        ConfigError: something else bears its name
    """
    folder = path.with_name(path.name + ".draft")
    is_new = not folder.exists()
    if not is_new and not (folder / MARK).is_file():
        raise ConfigError(f"{folder} is in the way; it is no draft of {path.name}, move it")
    write_json(folder / MARK, {"draft_of": path.name})
    try:
        index = open_index(folder, space)
    except FourMError as error:
        if is_new:
            remove_folder(folder)
            raise
        raise ConfigError(
            f"the vectors begun in {folder} cannot be gone on with ({error}): a run that is still "
            "going writes them, or they are of another model; wait for that run, or delete the "
            "folder"
        ) from error
    try:
        yield index
    except FourMError:
        if not len(index):
            remove_folder(folder)
        raise


def _there(index: Index, order: Iterable[str]) -> list[str]:
    """The ids that are rows of an index, in order, each once."""
    rows = dict.fromkeys(n for batch in index.scan(["id"]) for n in batch.column(0).to_pylist())
    return [name for name in dict.fromkeys(order) if name in rows]


def _batches(index: Index, ids: Sequence[str]) -> Iterator[Any]:
    """Record batches of id, uri and vector, in the order of the ids."""
    import pyarrow as pa

    for start in range(0, len(ids), CHUNK):
        some = list(ids[start : start + CHUNK])
        table = index.get(some, ["uri", "vector"])
        arrays = [pa.array(some), *(table.column(n).combine_chunks() for n in ("uri", "vector"))]
        yield pa.RecordBatch.from_arrays(arrays, names=["id", "uri", "vector"])


def _write_npy(index: Index, ids: Sequence[str], path: Path) -> None:
    names = path.with_name(path.stem + IDS_BESIDE)
    shape = (len(ids), int(index.width or 0))
    with replacing(path) as draft, replacing(names) as listed:
        array = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
        with listed.open("w", encoding="utf-8") as file:
            for number, batch in enumerate(_batches(index, ids)):
                flat = batch.column(2).flatten().to_numpy()
                start = number * CHUNK
                array[start : start + len(batch)] = flat.reshape(len(batch), -1)
                for row in zip(
                    batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True
                ):
                    file.write(json.dumps(dict(zip(("id", "uri"), row, strict=True))) + "\n")
        array.flush()


def _write_parquet(index: Index, ids: Sequence[str], path: Path) -> None:
    from pyarrow import parquet

    batches = _batches(index, ids)
    first = next(batches)
    with replacing(path) as draft, parquet.ParquetWriter(draft, first.schema) as file:
        for batch in chain([first], batches):
            file.write_batch(batch)
