"""An index: rows of id, vector and any columns, searched by cosine.

Rows live in a Lance table, their provenance in a manifest beside it. Search is exact while the
vectors fit ``memory_limit``; past that it is Lance's approximate search if it was built
(``build_ann``), else an exact run over the rows. ``info()`` names which. It never sees a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError, ShapeError, check_most
from fourm_lite.io.recipe import from_dict
from fourm_lite.search.calibration.probability import Calibration, with_confidence
from fourm_lite.search.index import ann as approximate
from fourm_lite.search.index.ann import Ann, AnnKind, RecallCheck
from fourm_lite.search.index.codes import Codes, Decode, check_codes
from fourm_lite.search.index.exact import unit_vectors
from fourm_lite.search.index.filters import filter_sql, in_filter
from fourm_lite.search.index.handle import Handle, folder_bytes
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.index.manifest import (
    Former,
    Manifest,
    address_of,
    create_manifest,
    is_remote,
    no_index,
    read_manifest,
)
from fourm_lite.search.index.reader import ID_CHUNK, Engine, Reader, as_matrix
from fourm_lite.search.index.rows import check_ids, make_table, stored_form
from fourm_lite.search.index.storage import Rows
from fourm_lite.unit import Floats

MEMORY_LIMIT = 4 << 30
"""Bytes of vectors that are searched in memory unless the user says otherwise."""


class Index:
    """A searchable collection; make one with ``Index.create``, come back with ``Index.open``.

    >>> import tempfile
    >>> index = Index.create(tempfile.mkdtemp() + "/shoes", space="toy")
    >>> index.add(["red", "blue"], [[1.0, 0.0], [0.0, 1.0]], year=[1999, 2024])
    2
    >>> index.search([0.9, 0.1], k=1).ids
    ['red']
    """

    def __init__(
        self,
        path: str,
        manifest: Manifest,
        *,
        memory_limit: int = MEMORY_LIMIT,
        decode: Decode | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._handle = Handle(
            path, manifest, memory_limit=memory_limit, decode=decode, options=options
        )

    @property
    def manifest(self) -> Manifest:
        """What the index says of its rows: their space and where they came from."""
        return self._handle.manifest

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        space: str,
        memory_limit: int = MEMORY_LIMIT,
        decode: Decode | None = None,
        options: Mapping[str, str] | None = None,
        **manifest: Any,
    ) -> Index:
        """Makes an empty index at a new address.

        Args:
            path: a folder, or an object-store address such as ``s3://bucket/index``
            space: the name of the vectors' space; a query must be of the same
            memory_limit: bytes that the vectors may take in memory for exact search
            decode: uint16[n, T] -> float32[n, E]; a codes-only index needs it to search
            options: what LanceDB needs to reach an object store
            manifest: fields of ``Manifest``; ``kind="codes"`` makes a codes-only index

        Raises:
            ConfigError: there is an index already, or a field is unknown
        """
        address = address_of(path)
        made = from_dict(Manifest, {"space": space, **manifest})
        create_manifest(address, made)
        return cls(address, made, memory_limit=memory_limit, decode=decode, options=options)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        memory_limit: int = MEMORY_LIMIT,
        decode: Decode | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Index:
        """Opens an index that ``create`` made; the arguments are those of ``create``."""
        address = address_of(path)
        manifest = read_manifest(address)
        if manifest is None:
            raise ConfigError(no_index(address))
        return cls(address, manifest, memory_limit=memory_limit, decode=decode, options=options)

    def __len__(self) -> int:
        return self._handle.read(lambda reader: reader.rows.count())

    def __repr__(self) -> str:
        return f"Index({self.path!r}, space={self.manifest.space!r}, rows={len(self)})"

    @property
    def width(self) -> int | None:
        """The width E of the vectors; unknown while an index is empty."""
        return self._handle.read(lambda reader: reader.width)

    @property
    def columns(self) -> list[str]:
        """The names of the columns; none while an index is empty."""
        with self._handle.pinned() as reader:
            return list(reader.rows.schema.names) if reader.rows.exists else []

    @property
    def rows(self) -> Rows:
        """The table as the storage engine has it, for what writes rows otherwise."""
        return self._handle.rows

    # Writing -------------------------------------------------------------------------------

    def add(
        self,
        ids: Iterable[Any],
        vectors: Any = None,
        *,
        codes: Any = None,
        space: str | None = None,
        **columns: Any,
    ) -> int:
        """Adds rows with new ids; all of them or none. Returns how many.

        Shapes:
            vectors: float[N, E], made unit length
            codes: whole numbers [N, T]; needed in a codes-only index, which takes no vectors
            columns: N values each, anything that Arrow can hold; absent columns are null
        Raises:
            ConfigError: an id is in the index or stands twice, a vector is not finite or zero
            ShapeError: widths or counts differ
        """
        with self._handle.pinned():
            table = self.prepare(ids, vectors, codes, space, columns)
        new = table.column("id").to_pylist()
        known = list(self._handle.read(lambda reader: reader.places(new))) if new else []
        if known:
            raise ConfigError(
                f"{len(known)} of these ids are in the index already, such as {known[0]!r}; "
                "use upsert to replace their rows"
            )
        added = self._handle.rows.insert(table) if len(table) else 0
        if added < len(table):
            raise ConfigError(
                f"another process added {len(table) - added} of these ids at the same moment; "
                "its rows were kept, use upsert to replace them"
            )
        return added

    def upsert(
        self,
        ids: Iterable[Any],
        vectors: Any = None,
        *,
        codes: Any = None,
        space: str | None = None,
        **columns: Any,
    ) -> tuple[int, int]:
        """Adds rows, and replaces whole rows of known ids; returns (added, replaced)."""
        with self._handle.pinned():
            table = self.prepare(ids, vectors, codes, space, columns)
        return self._handle.rows.upsert(table) if len(table) else (0, 0)

    def delete(self, ids: Iterable[Any]) -> int:
        """Deletes the rows with these ids and returns how many there were."""
        wanted = list(dict.fromkeys(ids)) if not isinstance(ids, str | int) else [ids]
        plain = check_ids(wanted)
        self._handle.newest()
        return sum(
            self._handle.rows.delete(in_filter("id", plain[start : start + ID_CHUNK]))
            for start in range(0, len(plain), ID_CHUNK)
        )

    def compact(self, *, keep: timedelta = timedelta(hours=1)) -> None:
        """Joins small files and drops versions older than ``keep`` that nobody is reading."""
        self._handle.newest()
        self._handle.rows.compact(keep)
        self.prepare_search()

    def prepare_search(self) -> None:
        """Makes ready what the first search of a large index needs beside the rows."""
        self._handle.read(lambda reader: reader.prepare())

    def set_calibration(
        self, calibration: Calibration | None, *, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Stores how scores become probabilities; later searches give ``p_right``.

        Args:
            calibration: the map; None for none
            extra: in place of the manifest's own

        Raises:
            FourMError: the manifest cannot be written; the old one is unchanged
        """
        stored = None if calibration is None else calibration.to_dict()
        kept = self.manifest.extra if extra is None else extra
        changed = dataclasses.replace(self.manifest, calibration=stored, extra=kept)
        self._handle.replace_manifest(changed)

    def renew_fingerprints(self, fingerprints: Mapping[str, str], former: Former) -> None:
        """Writes today's form of fingerprints that an earlier version wrote; see `Manifest.fits`.

        Raises:
            ConfigError: they are not those of the rows
            FourMError: the manifest cannot be written; the old one is unchanged
        """
        if (renewed := self.manifest.renewed(fingerprints, former)) != self.manifest:
            self._handle.replace_manifest(renewed)

    # Reading -------------------------------------------------------------------------------

    def search(
        self,
        vector: Any,
        k: int = 10,
        where: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        space: str | None = None,
        engine: Engine | None = None,
        ann: Ann | None = None,
    ) -> Hits:
        """The k rows nearest to one vector by cosine, best first; of equal scores the earlier row.

        Args:
            vector: float[E], any length but zero
            k: how many rows
            where: a SQL condition on the columns, such as ``year > 2020`` (see ``filters``)
            columns: which columns come with the hits; all but vector and codes if not given
            space: the space of the query; another than the index's is refused
            engine: forces one way to search; by size if not given
            ann: how approximate search spends its time

        Raises:
            ConfigError: another space, a filter that does not work, a vector without direction
            ShapeError: another width, or several vectors (see ``search_many``)
        """
        array = np.asarray(vector)
        array = array[0] if array.ndim == 2 and len(array) == 1 else array
        if array.ndim != 1:
            raise ShapeError(
                f"search takes one vector [E], got shape {list(array.shape)}; "
                "use search_many for several"
            )
        return self.search_many(
            array[None], k, where, columns=columns, space=space, engine=engine, ann=ann
        )[0]

    def search_many(
        self,
        vectors: Any,
        k: int = 10,
        where: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        space: str | None = None,
        engine: Engine | None = None,
        ann: Ann | None = None,
    ) -> list[Hits]:
        """One answer a vector of float[Q, E]; the arguments are those of ``search``."""
        check_most(1 << 40, k=k)
        if k < 1:
            raise ConfigError(f"k is the number of hits and at least 1, got {k}")

        def search(reader: Reader) -> list[Hits]:
            reader.manifest.require_space(space)
            queries = unit_vectors(vectors, None, reader.width)
            if not reader.rows.count():
                return [Hits([], np.empty(0, np.float32)) for _ in queries]
            calibration = Calibration.of(reader.manifest.calibration)
            condition = None if where is None else filter_sql(where, reader.rows.with_nan)
            wide = k if calibration is None else max(k, 2)  # the margin needs a second hit
            found = reader.nearest(queries, wide, condition, engine=engine, ann=ann)
            hits = [with_confidence(one, calibration) for one in reader.hits(found, columns)]
            return [one.take(range(min(k, len(one)))) for one in hits]

        return self._handle.read(search)

    def get(self, ids: Iterable[Any], columns: Sequence[str] | None = None) -> Any:
        """The rows with these ids as an Arrow table, in the order of the ids.

        Raises:
            ConfigError: an id is not in the index
        """
        plain = check_ids(ids)
        return self._handle.read(lambda reader: reader.rows_of(plain, columns))

    def vectors(self, ids: Iterable[Any]) -> Floats:
        """The vectors float32[N, E] of these ids; a codes-only index decodes them."""
        if self.manifest.kind == "codes":
            return self._handle.newest().decode_rows(self.get(ids, ["codes"]).column(0))
        return as_matrix(self.get(ids, ["vector"]).column(0))

    def codes(self, ids: Iterable[Any]) -> Codes:
        """The codes uint16[N, T] of these ids."""
        return self._handle.newest().codes_of(self.get(ids, ["codes"]).column(0))

    def scan(self, columns: Sequence[str] | None = None, where: str | None = None) -> Iterator[Any]:
        """Runs over the rows as Arrow record batches, in row order."""
        with self._handle.pinned() as reader:
            condition = None if where is None else filter_sql(where, reader.rows.with_nan)
            if reader.rows.exists:
                for _, batch in reader.rows.scan(reader.columns(columns), condition):
                    yield batch

    def info(self) -> dict[str, Any]:
        """What the index is: the manifest, its size, its columns, and how it searches."""
        return self._handle.read(self._told)

    def _told(self, reader: Reader) -> dict[str, Any]:
        rows = reader.rows
        schema = {f.name: str(f.type) for f in rows.schema} if rows.exists else {}
        return {
            "path": self.path,
            "rows": rows.count(),
            "width": reader.width,
            "version": rows.version,
            "columns": schema,
            "bytes": None if is_remote(self.path) else folder_bytes(Path(self.path)),
            "memory_limit": reader.memory_limit,
            "engine": reader.engine(),
            "ann": approximate.is_built(rows),
            "manifest": dataclasses.asdict(reader.manifest),
        }

    # Approximate search --------------------------------------------------------------------

    def build_ann(self, kind: AnnKind = "ivf_rq", *, partitions: int | None = None) -> None:
        """Builds Lance's approximate index; it is used where the vectors pass ``memory_limit``."""
        if self.manifest.kind == "codes":
            raise ConfigError("a codes-only index is searched by decoding; it takes no ann index")
        approximate.build(self._handle.rows, kind, width=self.width or 0, partitions=partitions)

    def check(
        self, *, k: int = 10, queries: int = 100, ann: Ann | None = None, seed: int = 0
    ) -> RecallCheck:
        """Measures the recall of approximate against exact search, on rows drawn as queries.

        A row's own hit does not count, so the figure is about true neighbours.
        """
        with self._handle.pinned() as reader:
            reader.require_ann()
            own, vectors = reader.sample(queries, seed)
            return approximate.check(reader.rows, reader.blocks(), own, vectors, k, ann or Ann())

    def prepare(
        self,
        ids: Iterable[Any],
        vectors: Any,
        codes: Any,
        space: str | None,
        columns: Mapping[str, Any],
    ) -> Any:
        """Checked rows in the schema of the table, which is made or widened for them."""
        reader = self._handle.newest()
        reader.manifest.require_space(space)
        plain = check_ids(ids)
        only_codes = self.manifest.kind == "codes"
        if (vectors is None) != only_codes or (only_codes and codes is None):
            needs = "codes= and no vectors" if only_codes else "vectors"
            raise ConfigError(f"an index of {self.manifest.kind} takes {needs} with its ids")
        units = None if vectors is None else unit_vectors(vectors, len(plain), reader.width)
        if codes is not None:
            codes = check_codes(codes, len(plain), self.manifest.codebook_size)
        table = make_table(plain, units, codes, columns, reader.store)
        return stored_form(table, self.rows) if len(table) else table
