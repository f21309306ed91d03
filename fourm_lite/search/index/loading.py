"""One item of a source read, hashed and, where it must be embedded, decoded.

Whether it must be is told by the hashes that its row has in the index.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourm_lite.errors import FourMError
from fourm_lite.photos.item import Item, Skipped

Decode = Callable[[bytes], Any]
"""The bytes of an item -> a picture, or what else an embedder reads."""
Facts = Callable[[bytes], Mapping[str, Any]]
"""The bytes of an item -> columns of its row."""
Hashes = tuple[int | None, int | None]
"""Of the bytes of an item, and of the rest of its row."""


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
