"""One item of a source read, hashed and, where it must be embedded, decoded.

Whether it must be is told by the hashes that its row has in the index.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import FourMError
from fourm_lite.photos.item import Item, Skipped

Decode = Callable[[bytes], Any]
"""The bytes of an item -> a picture, or what else an embedder reads."""
Facts = Callable[[bytes], Mapping[str, Any]]
"""The bytes of an item -> columns of its row."""
Hashes = tuple[int, int]
"""Of the bytes of an item, and of the rest of its row; 0 where the row does not tell."""
Keys = npt.NDArray[np.int64]
"""Hashes of ids."""


@dataclass(frozen=True)
class KnownRows:
    """Hashes of the rows of an index, 24 bytes each, sorted by the hash of their ids.

    Units:
        digest: a hash of all of them
    """

    ids: Keys
    content: Keys
    row: Keys
    digest: str

    @classmethod
    def of(cls, batches: Iterable[Any]) -> KnownRows:
        """Those of record batches with the columns id, and content_hash and row_hash if known."""
        parts: list[tuple[Keys, ...]] = [(np.empty(0, np.int64),) * 3]
        for batch in batches:
            hashes = [np.zeros(len(batch), np.int64)] * 2
            for place, name in enumerate(("content_hash", "row_hash")):
                if name in batch.schema.names:
                    hashes[place] = batch.column(name).fill_null(0).to_numpy()
            parts.append((keys_of(batch.column("id").to_pylist()), *hashes))
        ids, content, row = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(ids, kind="stable")
        ids, content, row = (array[order] for array in (ids, content, row))
        made = hashlib.sha256(b"".join(array.tobytes() for array in (ids, content, row)))
        return cls(ids, content, row, made.hexdigest())

    def get(self, name: str) -> Hashes | None:
        """The hashes of a row, or None where there is none of this id."""
        key = key_of(name)
        at = int(np.searchsorted(self.ids, key))
        if at == len(self.ids) or self.ids[at] != key:
            return None
        return int(self.content[at]), int(self.row[at])


def key_of(name: str | int) -> int:
    """A hash of an id; the number 5 is another id than the text "5"."""
    if isinstance(name, str):
        return content_hash(name.encode("utf-8", "surrogatepass"))
    return content_hash(b"\xff%d" % name)  # no text begins so


def keys_of(ids: Iterable[str | int]) -> Keys:
    """Hashes of ids: int64[N]."""
    return np.array([key_of(name) for name in ids], np.int64)


@dataclass(frozen=True)
class Loaded:
    """An item after reading: its hashes and, where it must be embedded, its picture."""

    item: Item
    content_hash: int
    row_hash: int
    state: str  # "added" | "changed" | "updated" | "unchanged"
    image: Any = None


@dataclass(frozen=True)
class Loader:
    """Reads items; many threads may share it.

    Args:
        known: id -> hashes of its row, None where there is none
        decode: see `ingest.index_items`
        facts: see `ingest.index_items`
    """

    known: Callable[[str], Hashes | None]
    decode: Decode
    facts: Facts

    def load(self, item: Item) -> Loaded | Skipped:
        """Reads and hashes; decodes only what must be embedded. Runs in a worker thread."""
        try:
            data = item.read()
        except OSError as error:
            return Skipped(item.uri, f"cannot be read: {error.strerror or error}")
        content, row = content_hash(data), _row_hash(item)
        known = self.known(item.id)
        if known is not None and known[0] == content:
            if known[1] == row:
                return Loaded(item, content, row, "unchanged")
            return Loaded(self._told(item, data), content, row, "updated")
        try:
            image = self.decode(data)
        except FourMError as error:
            return Skipped(item.uri, str(error))
        state = "added" if known is None else "changed"
        return Loaded(self._told(item, data), content, row, state, image)

    def _told(self, item: Item, data: bytes) -> Item:
        """The item with the columns that are read from its bytes."""
        return dataclasses.replace(item, columns={**self.facts(data), **item.columns})


def columns_of(rows: Sequence[Loaded]) -> dict[str, Any]:
    """Columns of rows: those of their items, where they lie, and their hashes."""
    names = dict.fromkeys(name for one in rows for name in one.item.columns)
    own: dict[str, Any] = {name: [one.item.columns.get(name) for one in rows] for name in names}
    own["uri"] = [one.item.uri for one in rows]
    own["content_hash"] = [one.content_hash for one in rows]
    own["row_hash"] = [one.row_hash for one in rows]
    return own


def content_hash(data: bytes) -> int:
    """A hash of a photo's bytes, as its row keeps it in the column of that name."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _row_hash(item: Item) -> int:
    """A hash of everything in a row but the picture: where it lies and its columns."""
    text = json.dumps([item.uri, dict(item.columns)], sort_keys=True, default=str)
    return content_hash(text.encode("utf-8", "replace"))


def no_facts(data: bytes) -> Mapping[str, Any]:
    """No columns, as of bytes that are no photo."""
    return {}
