"""What a source gives: items with their own columns, and what was skipped with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What a row has already, and the arguments of ``Index.add``.
TAKEN = frozenset(
    {"id", "ids", "vector", "vectors", "codes", "uri", "content_hash", "row_hash", "space", "self"}
)


@dataclass(frozen=True)
class Item:
    """One picture: its stable id, where it lies, how to read it, and its columns."""

    id: str
    uri: str
    read: Callable[[], bytes]
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """Something that is not indexed, and why."""

    uri: str
    reason: str


Stream = Iterator[Item | Skipped]


def file_item(path: Path, name: str) -> Item:
    """One file as an item; its bytes are read when they are needed."""
    return Item(printable(name), printable(str(path)), path.read_bytes)


def printable(name: str) -> str:
    r"""The name as text that any file format takes; bytes that are no UTF-8 are spelled out.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def clean_columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under names that an index takes: reserved names get a trailing ``_``.

    >>> clean_columns({"id": 3, "exif.iso": 100, "_x": 1, "year": None})
    {'id_': 3, 'exif_iso': 100, 'x': 1, 'year': None}
    """
    clean = {}
    for name, value in fields.items():
        plain = printable(str(name)).replace(".", "_").lstrip("_") or "column"
        clean[plain + "_" if plain in TAKEN else plain] = value
    return clean
