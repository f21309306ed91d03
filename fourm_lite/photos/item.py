"""What a source gives: photos with their own columns, and what was left out with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.photos.columns import captions_of
from fourm_lite.photos.content import FileContent
from fourm_lite.photos.endings import PARQUET_ENDINGS, is_tar, stem_of
from fourm_lite.reading.remote import is_remote, place

# What a row has already, and the arguments of ``Index.add``.
TAKEN = frozenset(
    {"id", "ids", "vector", "vectors", "codes", "uri", "content_hash", "row_hash", "space", "self"}
)
_CAPTIONS = ("caption", "captions")


@dataclass(frozen=True)
class Item:
    """One picture: its stable id, where it lies, how to read it, and its columns.

    Units:
        id, columns: as an index names them
        key, fields: as training does: its name inside its source, and what the source says of it,
            as it stands there
        beside: of a second picture in one sample of an archive, the key of the first
    """

    id: str
    uri: str
    read: Callable[[], bytes]
    columns: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    beside: str = ""


@dataclass(frozen=True)
class Skipped:
    """Something that is left out, and why.

    Units:
        hides: the place whose photos may be hidden by this, its own where nothing is said
    """

    uri: str
    reason: str
    hides: str = ""

    def may_hide(self, uri: str) -> bool:
        """Whether a photo at `uri` may be there although this source did not give it."""
        place = self.hides or self.uri
        return uri == place or uri.startswith((f"{place}::", f"{place.rstrip('/')}/"))


Stream = Iterator[Item | Skipped]


def file_item(path: Path, name: str) -> Item:
    """One file as an item; its bytes are read when they are needed."""
    plain = printable(name)
    return Item(plain, printable(str(path)), FileContent(path), key=stem_of(plain))


def printable(name: str) -> str:
    r"""The name as text that any file format takes; bytes that are no UTF-8 are spelled out.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_uri(uri: str) -> tuple[Path, str]:
    """The file behind a ``uri`` and the member inside it, "" for the file itself.

    Names may hold ``::`` themselves, so the disk is asked where the name of the file ends.
    """
    if is_remote(uri):
        file, _, member = uri.rpartition("::")
        inside = is_tar(file) or file.lower().endswith(PARQUET_ENDINGS)
        return (place(file), member) if inside else (place(uri), "")
    parts = uri.split("::")
    for count in range(len(parts), 0, -1):
        path = Path("::".join(parts[:count]))
        if path.exists():
            return path, "::".join(parts[count:])
    return Path(uri), ""


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


def joined(first: Item, second: Item) -> Item | None:
    """One item of two rows that tell of one photo and differ in their captions alone.

    >>> a, b = (Item("1", "1.jpg", bytes, {"caption": c}) for c in ("a dog", "a puppy"))
    >>> joined(a, b).columns
    {'captions': ['a dog', 'a puppy']}
    """
    if (first.id, first.uri) != (second.id, second.uri) or first.read != second.read:
        return None
    columns, fields = (_joined(a, b) for a, b in _pairs(first, second))
    if columns is None or fields is None:
        return None
    return dataclasses.replace(first, columns=columns, fields=fields)


def _pairs(first: Item, second: Item) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (first.columns, second.columns), (first.fields, second.fields)


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    rest, other = ({k: v for k, v in d.items() if k not in _CAPTIONS} for d in (first, second))
    said = [d[name] for d in (first, second) for name in _CAPTIONS if name in d]
    if rest != other:
        return None
    try:
        texts = dict.fromkeys(text for value in said for text in captions_of(value))
    except ValueError:
        return None
    return {**rest, "captions": list(texts)} if said else rest
