"""Vectors made earlier, in a file of their own, searched by anything that a model reads.

The file is only read. Its vectors must be of the network whose embedding the model predicts (or of
the dual encoder that asks); the width is checked, the rest is the user's word. Rows are compared by
centred cosine: with the tokenizer's mean where the vectors are raw, as the network gives them, with
their own mean where they have unit length (the raw scale is then lost) or the tokenizer has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, FourMError, ShapeError, foreign_errors
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.lists import json_rows
from fourm_lite.photos.table_rows import opened_lance
from fourm_lite.reading.arrays import open_npz
from fourm_lite.reading.regular import budget, check_size, read_text
from fourm_lite.search.index.exact import Block, nearest
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.index.manifest import FILE as MANIFEST
from fourm_lite.search.index.manifest import is_remote
from fourm_lite.search.query import Query, asked_for
from fourm_lite.search.spaces import CENTRED, Space
from fourm_lite.search.whitening import Centre
from fourm_lite.unit import Floats, unit

NAMES = ("embeddings", "embedding", "vectors", "vector", "features", "image_embeds")
IDS_BESIDE = ".ids.jsonl"
"""Of NAME.npy, as `embed_to_file` writes it: lines of id and uri."""
IDS = ("ids", "id", "names", "files", "uri", "path")
ROWS = 16_384
UNIT_TOLERANCE = 0.02
"""Of the median length: unit vectors in 8 bits come back a little off."""


@dataclass(frozen=True)
class VectorFile:
    """Vectors of a file.

    Shapes:
        vectors: float[N, E], mapped from the disk where the format allows
        ids: N texts or numbers
    """

    path: Path
    vectors: npt.NDArray[Any]
    ids: list[Any]
    columns: Mapping[str, list[Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        array = self.vectors
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not len(array):
            raise ShapeError(
                f"{self.path.name} should hold numbers [N, E], got {array.dtype}{list(array.shape)}"
            )
        if len(self.ids) != len(array):
            raise ShapeError(
                f"{self.path.name} holds {len(array)} vectors, there are {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """The width of a vector."""
        return int(self.vectors.shape[1])

    def rows(self, start: int) -> Floats:
        """Some vectors as float32.

        Raises:
            ConfigError: one is not finite, or is zero and has no direction
        """
        part = np.asarray(self.vectors[start : start + ROWS], np.float32)
        self._refuse(~np.isfinite(part).all(axis=1), start, "is not finite")
        self._refuse(~part.any(axis=1), start, "is zero and has no direction")
        return part

    def has_unit_length(self) -> bool:
        """Whether the vectors are unit ones, up to what storing them in few bits costs.

        Most of the first ones decide, so that one odd row does not change how all are compared.
        """
        lengths = np.linalg.norm(self.rows(0).astype(np.float64), axis=1)
        return bool(np.median(np.abs(lengths - 1)) < UNIT_TOLERANCE)

    def _refuse(self, bad: Any, start: int, why: str) -> None:
        if bad.any():
            raise ConfigError(
                f"{self.path.name}: vector {start + int(bad.argmax())} {why}; mend it or leave it "
                "out"
            )


def open_vectors(
    path: str | Path, *, key: str | None = None, ids: str | Path | None = None
) -> VectorFile:
    """Vectors of a .npy, .npz, .safetensors, .parquet, .faiss, .index file or a LanceDB table.

    Args:
        path: the file, or the folder `NAME.lance` of a table
        key: which array or column holds the vectors; found by name or shape otherwise
        ids: a file with an id a line, or a JSON list; by default what the file itself says, or the
            NAME.ids.jsonl beside NAME.npy, else row numbers

    Raises:
        ConfigError: no such file or format, or nothing in it looks like vectors
        ShapeError: ids and vectors differ in number
    """
    place = Path(path).expanduser()
    ending = place.suffix.lower()
    if ending not in _READERS:
        known = ", ".join(_READERS)
        raise ConfigError(f"{place.name}: vectors are read from {known}, got {ending or 'none'}")
    if not place.exists():
        raise ConfigError(f"there is no file {place}")
    with foreign_errors(ConfigError, f"{place.name} cannot be read as {ending}: {{error}}"):
        table = _READERS[ending](place)
    name = _vector_name(place, table, key)
    vectors = table[name]
    rest = {n: a for n, a in table.items() if n != name and len(a) == len(vectors)}
    own = next((n for n in IDS if n in table and n != name and np.ndim(table[n]) == 1), None)
    if ids is None and own is not None and own not in rest:
        raise ShapeError(
            f"{place.name} holds {len(vectors)} vectors and {len(table[own])} {own!r}; give each "
            "vector its id, or other ids with ids="
        )
    if ids is not None:
        found = _ids_of(Path(ids).expanduser())
    else:
        found = list(range(len(vectors))) if own is None else _plain(rest.pop(own))
    columns = {n: _plain(a) for n, a in rest.items() if np.ndim(a) == 1}
    return VectorFile(place, vectors, found, columns)


def is_vector_file(path: str | Path) -> bool:
    """Whether a path names a file of vectors rather than an index of ours, whatever its name."""
    place = Path(os.path.expanduser(path))
    is_index = is_remote(str(path)) or (place / MANIFEST).is_file()
    return place.suffix.lower() in _READERS and not is_index


@dataclass(frozen=True)
class VectorSearch:
    """Asks a file of vectors; make one with `VectorSearch.of`."""

    file: VectorFile
    space: Space

    @classmethod
    def of(cls, file: VectorFile, space: Space) -> VectorSearch:
        """The file and what embeds its queries.

        Raises:
            ConfigError: it is no file of vectors
            ShapeError: the widths differ, so the file is of another space
        """
        if not isinstance(file, VectorFile):
            raise ConfigError(
                "VectorSearch.of takes a file of vectors as open_vectors('NAME.npy') gives it, got "
                f"{type(file).__name__}; write an array with numpy.save, or search by one vector "
                "with Index.open('IDX').search(vector)"
            )
        if file.width != space.width:
            raise ShapeError(
                f"{file.path.name} holds vectors of width {file.width}, the space '{space.name}' "
                f"is of width {space.width}: they are different spaces"
            )
        return cls(file, _fitted(file, space))

    @property
    def info(self) -> dict[str, Any]:
        """What the file holds and how it is compared."""
        centre = self.space.centre
        return {
            "path": str(self.file.path),
            "rows": len(self.file),
            "width": self.file.width,
            "space": self.space.name.removesuffix(CENTRED),
            "centre": centre.source,
            "columns": list(self.file.columns),
        }

    def __call__(
        self,
        query: Query | Mapping[str, Any] | str | Path | None = None,
        k: int = 10,
        **given: Any,
    ) -> Hits:
        """The k rows that answer a query best; see `Search`."""
        if k < 1:
            raise ConfigError(f"k is at least 1, got {k}")
        vector = asked_for(query, given).vector(self.space)
        blocks = (self._block(start) for start in range(0, len(self.file), ROWS))
        found = nearest(blocks, vector[None], k)[0]
        rows = found.row_ids.astype(int).tolist()
        columns = {n: [values[r] for r in rows] for n, values in self.file.columns.items()}
        return Hits([self.file.ids[r] for r in rows], found.scores, columns)

    def _block(self, start: int) -> Block:
        vectors = self.space.centre(self.file.rows(start))
        return Block(np.arange(start, start + len(vectors), dtype=np.uint64), vectors)


def _fitted(file: VectorFile, space: Space) -> Space:
    """The space with the centre that fits the file's vectors."""
    if space.centre.source == "gallery" or not space.wants_centre:
        return space
    if space.centre.mean is not None and not file.has_unit_length():
        return space
    return space.with_centre(_mean_of(file))


def _mean_of(file: VectorFile) -> Centre:
    unit_first = file.has_unit_length()
    total = np.zeros(file.width, np.float64)
    for part in map(file.rows, range(0, len(file), ROWS)):
        total += (unit(part) if unit_first else part).sum(axis=0, dtype=np.float64)
    return Centre((total / len(file)).astype(np.float32), "gallery", unit_first)


def _vector_name(path: Path, table: Mapping[str, Any], key: str | None) -> str:
    if key is not None:
        if key not in table:
            raise ConfigError(f"{path.name} has no '{key}', it has {sorted(table)}")
        return key
    wide = [n for n, a in table.items() if np.ndim(a) == 2 and a.dtype.kind in "fiu"]
    named = [n for n in NAMES if n in wide]
    if len(wide) != 1 and not named:
        raise ConfigError(
            f"{path.name} holds {len(wide)} arrays [N, E] of {sorted(table)}; say which with key="
        )
    return named[0] if named else wide[0]


def _ids_of(path: Path) -> list[Any]:
    if not path.is_file():
        raise ConfigError(f"there is no file of ids {path}")
    text = read_text(path, most=budget().bytes)
    if path.suffix.lower() != ".json":
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, list):
        raise ConfigError(f"{path.name} should hold a list of ids")
    return found


def _plain(values: Any) -> list[Any]:
    array = np.asarray(values)
    return [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]


# Formats -------------------------------------------------------------------------------------


def _npy(path: Path) -> dict[str, Any]:
    check_size(path)
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    names = path.with_name(path.stem + IDS_BESIDE)
    rows = list(json_rows(names)) if names.is_file() else []
    found = [row[1] for row in rows if not isinstance(row, Skipped)]
    return {"vectors": vectors, **{n: _texts(found, n) for n in ("id", "uri") if found}}


def _texts(rows: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[Any]:
    return np.array([str(row.get(name, "")) for row in rows], object)


def _npz(path: Path) -> dict[str, Any]:
    with open_npz(path) as file:
        read = {name: file[name] for name in file.files}
    return {name: array for name, array in read.items() if array.ndim}


def _safetensors(path: Path) -> dict[str, Any]:
    import torch

    from fourm_lite.io.weights_file import load_tensors

    check_size(path)
    tensors = load_tensors(path)
    halves = (torch.bfloat16, torch.float16)
    return {n: (t.float() if t.dtype in halves else t).numpy() for n, t in tensors.items()}


def _parquet(path: Path) -> dict[str, Any]:
    from pyarrow import parquet

    return _arrow(parquet.read_table(path))


def _lance(path: Path) -> dict[str, Any]:
    return _arrow(opened_lance(path).to_table())


def _faiss(path: Path) -> dict[str, Any]:
    try:
        import faiss
    except ImportError as error:
        raise FourMError("a FAISS file needs faiss: pip install faiss-cpu") from error
    try:
        whole: Any = faiss.read_index(str(path))  # faiss types its indexes as their base alone
        index, found = whole, {}
        if hasattr(whole, "id_map"):
            found["ids"] = faiss.vector_to_array(whole.id_map)
            index = faiss.downcast_index(whole.index)  # lives as long as `whole` does
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.make_direct_map()
        return {"vectors": index.reconstruct_n(0, index.ntotal), **found}
    except RuntimeError as error:  # faiss raises nothing finer
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"{path.name}: faiss cannot give its vectors back: {reason}") from error


def _arrow(table: Any) -> dict[str, Any]:
    """Columns of numbers and texts as arrays; lists of one length as [N, E].

    Raises:
        ConfigError: a row has no vector where others have one
    """
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name in table.schema.names:
        column = table.column(name).combine_chunks()
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage  # a tensor is stored as a list of its numbers
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not is_list and not pa.types.is_fixed_size_list(kind):
            found[name] = np.array(column.to_pylist(), dtype=object)
        elif _is_number(kind.value_type) and len(column):
            matrix = _lists(name, column)
            found |= {} if matrix is None else {name: matrix}
    return found


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _lists(name: str, column: Any) -> npt.NDArray[Any] | None:
    """A column of lists of numbers as [N, E], or None where their lengths differ."""
    import pyarrow.compute as pc

    lengths = set(pc.drop_null(pc.list_value_length(column)).to_pylist())
    if len(lengths) != 1:
        return None
    if column.null_count:  # without them the later rows would move up
        row = column.is_null().to_pylist().index(True)
        raise ConfigError(
            f"column {name!r} has no vector in row {row} ({column.null_count} rows are so); leave "
            "these rows out, with their ids"
        )
    return _matrix(column.flatten(), lengths.pop())


def _matrix(flat: Any, width: int) -> npt.NDArray[Any]:
    values = flat.to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(-1, width) if width else values)


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".lance": _lance,
    ".faiss": _faiss,
    ".index": _faiss,  # what autofaiss and clip-retrieval call them
}
