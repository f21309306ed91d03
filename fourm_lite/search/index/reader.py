"""The reading half of an index: three ways to find neighbours, one way to fetch their rows.

``memory`` searches exactly, in int8 first (`coarse`): the vectors are in memory, or, of a large
index on a disk, the rounded ones are mapped from files beside the table; ``scan`` runs over the
rows in bounded memory, decoding codes as it goes; ``ann`` asks Lance. All give ``Nearest``, in one
order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, StorageError, check_choice
from fourm_lite.io.files import remove_folder, remove_leftovers, replacing_folder
from fourm_lite.search.index import ann as approximate
from fourm_lite.search.index.ann import Ann
from fourm_lite.search.index.coarse import FEWEST, Coarse, Positions, nearest_fetched, nearest_of
from fourm_lite.search.index.codes import Codes, CodeStore, Decode, decoded
from fourm_lite.search.index.exact import Block, Nearest, RowIds, nearest, unit_vectors
from fourm_lite.search.index.filters import in_filter
from fourm_lite.search.index.hits import Hits, Id
from fourm_lite.search.index.manifest import Manifest
from fourm_lite.search.index.storage import Snapshot
from fourm_lite.unit import Floats

Engine = Literal["memory", "scan", "ann"]
ENGINES: tuple[Engine, ...] = ("memory", "scan", "ann")
HEAVY = ("vector", "codes")
ID_CHUNK = 10_000
FILTERS = 8
MAPPED_FROM = 1 << 30
"""Bytes of vectors from which the rounded ones are mapped from files."""
ROUNDED = "rounded"
"""The folder of these files in an index."""


@dataclass(frozen=True)
class Held:
    """The rows of a version: row ids, ids as an Arrow array, vectors, vectors in int8.

    `vectors` is None where they are fetched.
    """

    row_ids: RowIds
    ids: Any
    vectors: Floats | None
    coarse: Coarse | None


class Reader:
    """Finds and fetches rows of one version of an index; keeps its vectors once they are read.

    Threads may share it: nothing that one of them reads is changed or emptied for another.
    """

    def __init__(
        self,
        rows: Snapshot,
        manifest: Manifest,
        memory_limit: int,
        decode: Decode | None,
        place: Path | None = None,
    ) -> None:
        self.rows = rows
        self.place = place
        self.manifest = manifest
        self.memory_limit = memory_limit
        self._decode = decode
        self._store = CodeStore(manifest.codebook_size, packed=manifest.kind == "codes")
        self._held: Held | None = None
        self._passing: dict[str, Positions] = {}
        self._loading = threading.Lock()

    @property
    def store(self) -> CodeStore:
        """How codes lie in the table."""
        return self._store

    @property
    def width(self) -> int | None:
        """The width E of the vectors; unknown while an index is empty."""
        if self.rows.exists and "vector" in self.rows.schema.names:
            return int(self.rows.schema.field("vector").type.list_size)
        return self.manifest.width

    def engine(self) -> Engine:
        """How a search runs, by the size of the vectors and by what was built."""
        if self.manifest.kind == "codes":
            return "scan"
        if self.rows.count() * 4 * (self.width or 0) <= self.memory_limit:
            return "memory"
        return "ann" if approximate.is_built(self.rows) else "scan"

    def nearest(
        self,
        queries: Floats,
        k: int,
        where: str | None = None,
        *,
        engine: Engine | None = None,
        ann: Ann | None = None,
    ) -> list[Nearest]:
        """The k nearest rows of every query, among those that pass the filter."""
        engine = engine or self.engine()
        check_choice("engine", engine, of=ENGINES)
        if engine == "ann":
            self.require_ann()
            return approximate.search(self.rows, queries, k, where, ann or Ann())
        if engine == "memory" and self.manifest.kind == "vectors":
            held = self._vectors_held()
            among = self._among(held, where)
            if held.vectors is not None:
                block = Block(held.row_ids, held.vectors)
                return nearest_of(block, held.coarse, queries, k, among)
            assert held.coarse is not None
            fetch = self._fetched
            return nearest_fetched(held.row_ids, held.coarse, fetch, queries, k, among)
        return nearest(self.blocks(where), queries, k)

    def require_ann(self) -> None:
        """Refuses where no approximate index was built."""
        if not approximate.is_built(self.rows):
            raise ConfigError(
                "there is no approximate index here; make one with `fourm-lite index build`, "
                "in Python with `build_ann`"
            )

    def blocks(self, where: str | None = None) -> Iterator[Block]:
        """All vectors in row order, a batch at a time, straight from the disk."""
        if self.manifest.kind == "codes":
            decode = self.decoder()
            batches = self.rows.scan(["codes"], where)
            codes = ((row_ids, self._store.from_arrow(b.column(0))) for row_ids, b in batches)
            yield from decoded(codes, decode, self.manifest.width)
            return
        for row_ids, batch in self.rows.scan(["vector"], where):
            yield Block(row_ids, as_matrix(batch.column(0)))

    def decoder(self) -> Decode:
        """The function that turns codes into vectors."""
        if self._decode is None:
            raise ConfigError(
                "a codes-only index is searched by decoding its codes; "
                "give decode=, the tokenizer's decoder, when it is opened"
            )
        return self._decode

    def hits(self, found: Sequence[Nearest], columns: Sequence[str] | None) -> list[Hits]:
        """The ids, scores and columns of rows that were found, fetched for all answers at once."""
        if not found:
            return []
        names = [name for name in self.columns(columns) if name != "id"]
        if not names and self._held is not None:
            return [Hits(self._ids_held(one.row_ids) or [], one.scores) for one in found]
        each = [one.row_ids for one in found]
        row_ids, places = np.unique(np.concatenate(each), return_inverse=True)
        table = self.rows.take(row_ids, ["id", *names])
        ids = table.column("id").to_pylist()
        values = {name: self._plain(name, table.column(name)) for name in names}
        all_rows = Hits(ids, np.zeros(len(ids), np.float32), values)
        parts = np.split(places, np.cumsum([len(one) for one in each])[:-1])
        return [
            dataclasses.replace(all_rows.take(part.tolist()), scores=one.scores)
            for one, part in zip(found, parts, strict=True)
        ]

    def places(self, ids: Sequence[Id]) -> dict[Id, int]:
        """The row id of each of these ids that is in the index."""
        found: dict[Id, int] = {}
        for start in range(0, len(ids), ID_CHUNK):
            where = in_filter("id", ids[start : start + ID_CHUNK])
            for row_ids, batch in self.rows.scan(["id"], where):
                found.update(zip(batch.column(0).to_pylist(), row_ids.tolist(), strict=True))
        return found

    def rows_of(self, ids: Sequence[Id], columns: Sequence[str] | None) -> Any:
        """The rows with these ids as an Arrow table, in the order of the ids.

        Raises:
            ConfigError: an id is not in the index
        """
        place = self.places(ids)
        absent = [i for i in ids if i not in place]
        if absent:
            raise ConfigError(
                f"{len(absent)} of the ids are not in the index, such as {absent[0]!r}; "
                "write an id as a search prints it, with its ending"
            )
        row_ids = np.array([place[i] for i in ids], np.uint64)
        return self.rows.take(row_ids, self.columns(columns))

    def columns(self, names: Sequence[str] | None) -> list[str]:
        """The named columns, or all but the heavy ones.

        Raises:
            ConfigError: there is no such column
        """
        known = list(self.rows.schema.names) if self.rows.exists else ["id"]
        if names is None:
            return [name for name in known if name not in HEAVY]
        check_choice("a column of the index", *names, of=known)
        return list(names)

    def sample(self, count: int, seed: int) -> tuple[RowIds, Floats]:
        """Row ids and vectors of ``count`` rows drawn without repetition."""
        row_ids = np.concatenate([ids for ids, _ in self.rows.scan(["id"])])
        chosen = np.random.default_rng(seed).permutation(len(row_ids))[:count]
        drawn = row_ids[np.sort(chosen)]
        return drawn, as_matrix(self.rows.take(drawn, ["vector"]).column(0))

    def codes_of(self, column: Any) -> Codes:
        """The codes uint16[N, T] of a column."""
        return self._store.from_arrow(_joined(column))

    def decode_rows(self, column: Any) -> Floats:
        """Unit vectors of a column of codes."""
        codes = self.codes_of(column)
        return unit_vectors(self.decoder()(codes), len(codes), self.manifest.width)

    def _vectors_held(self) -> Held:
        """The vectors in memory, which the first search of this version reads."""
        with self._loading:
            if self._held is None:
                self._held = self._load()
        return self._held

    def _among(self, held: Held, where: str | None) -> Positions | None:
        """Where the rows that pass a filter lie, ascending; the last filters are remembered."""
        if where is None:
            return None
        known = self._passing.get(where)
        if known is None:
            passing = [ids for ids, _ in self.rows.scan([], where)]
            allowed = np.concatenate(passing) if passing else np.empty(0, np.uint64)
            known = np.sort(np.searchsorted(held.row_ids, allowed))
            while len(self._passing) >= FILTERS:
                self._passing.pop(next(iter(self._passing), where), None)
            self._passing[where] = known
        return known

    def prepare(self) -> None:
        """Writes what the first search of a large index would write."""
        if self.manifest.kind == "vectors" and self.engine() == "memory":
            self._mapped()

    def _fetched(self, places: Positions) -> Floats:
        assert self._held is not None
        return as_matrix(self.rows.take(self._held.row_ids[places], ["vector"]).column(0))

    def _load(self) -> Held:
        """Vectors, rounded or as they are, and the ids beside them."""
        import pyarrow as pa

        mapped = self._mapped()
        if mapped is not None:
            coarse, row_ids = mapped
            ids = [batch.column(0) for _, batch in self.rows.scan(["id"])]
            names = pa.chunked_array(ids, self.rows.schema.field("id").type)
            return Held(row_ids, names, None, coarse)
        return self._loaded_whole()

    def _mapped(self) -> tuple[Coarse, RowIds] | None:
        """The rounded rows of a large index, from files beside it, which are made if need be.

        None where the index is small, or where nothing can be written.
        """
        count, width = self.rows.count(), self.width or 0
        if self.place is None or count < FEWEST or 4 * count * width < MAPPED_FROM:
            return None
        folder = self.place / ROUNDED / self.rows.content
        found = Coarse.mapped(folder, count, width)
        if found is None:
            with contextlib.suppress(StorageError):
                with replacing_folder(folder) as draft:
                    Coarse.write(self.blocks(), draft)
                found = Coarse.mapped(folder, count, width)
                for old in folder.parent.iterdir():  # who has them mapped keeps them
                    if old != folder and not old.name.startswith("."):
                        remove_folder(old)
                remove_leftovers(folder.parent)
        return found

    def _loaded_whole(self) -> Held:
        """All vectors in one array."""
        import pyarrow as pa

        count, width = self.rows.count(), self.width or 0
        row_ids, vectors = np.empty(count, np.uint64), np.empty((count, width), np.float32)
        ids, filled = [], 0
        for part, batch in self.rows.scan(["vector", "id"]):
            end = filled + len(part)
            row_ids[filled:end], vectors[filled:end] = part, as_matrix(batch.column(0))
            ids.append(batch.column(1))
            filled = end
        names = pa.chunked_array(ids, self.rows.schema.field("id").type)
        coarse = Coarse.of(vectors) if count >= FEWEST else None
        return Held(row_ids, names, vectors, coarse)

    def _ids_held(self, row_ids: RowIds) -> list[Id] | None:
        """The ids of these rows, where the rows of this version are in memory."""
        if self._held is None:
            return None
        places = np.searchsorted(self._held.row_ids, row_ids)
        return [self._held.ids[int(place)].as_py() for place in places]

    def _plain(self, name: str, column: Any) -> list[Any]:
        if name not in HEAVY:
            plain: list[Any] = column.to_pylist()
            return plain
        array = _joined(column)
        there = array.is_valid().to_pylist()
        read = self.codes_of if name == "codes" else as_matrix
        values = iter(read(array.drop_null()) if any(there) else ())
        return [next(values) if is_there else None for is_there in there]


def as_matrix(column: Any) -> Floats:
    """An Arrow column of fixed-size lists as float32[N, E]."""
    array = _joined(column)
    flat: npt.NDArray[np.float32] = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, array.type.list_size)


def _joined(column: Any) -> Any:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column
