"""One photo of any source: id, name, bytes and columns; and what was left out, with its reason.

Ids name photos: what is found by them, labels, tokens and figures, is found once or refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fourm_lite.errors import FourMError
from fourm_lite.modalities.camera_files import HEIC, RAW, is_read, package_of
from fourm_lite.modalities.pictures import SUFFIXES
from fourm_lite.photos.columns import captions_of
from fourm_lite.reading.regular import open_regular, read_photo
from fourm_lite.reading.remote import is_remote, place


@dataclass(frozen=True)
class FileContent:
    """A file that is read when its bytes are needed."""

    path: Path

    def __call__(self) -> bytes:
        """The bytes.

        Raises:
            ReadError: it is no regular file, larger than any photo, or may not be read
        """
        return read_photo(self.path)


@dataclass(frozen=True)
class HeldContent:
    """Bytes that came with their source, a member of an archive or a cell of a table."""

    data: bytes = field(repr=False)

    def __call__(self) -> bytes:
        """The bytes."""
        return self.data


def begins_with(path: Path, starts: tuple[bytes, ...], count: int = 8) -> bool:
    """Whether a file begins with one of these; no where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(count).startswith(starts)
    except OSError:
        return False


_UNREAD = "jxl j2k jpx jpf psd xcf svg eps exr hdr tga ico"
UNREAD = frozenset("." + ending for ending in _UNREAD.split()) | HEIC | RAW
"""Endings of photos and drawings that are listed, unless an extra reads them."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_ENDINGS = (".parquet", ".pq")
LINE_ENDINGS = (".jsonl", ".ndjson")
TEXT_ENDINGS = (".txt", ".txt.gz")


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot.

    >>> suffix_of("a/b.tar.JPG")
    '.jpg'
    """
    return PurePosixPath(name).suffix.lower()


def is_picture(name: str) -> bool:
    """Whether a file's name ends as that of a picture does."""
    ending = suffix_of(name)
    return ending in SUFFIXES or is_read(ending)


def why_unread(name: str) -> str:
    """Why a photo of this name is not read; nothing where it is none, or is read."""
    ending = suffix_of(name)
    if ending not in UNREAD or is_read(ending):
        return ""
    package = package_of(ending)
    first = f"pip install {package}, or " if package else ""
    return f"{ending} is not read; {first}convert it to JPEG, PNG or WebP"


def is_tar(name: str) -> bool:
    """Whether a file's name is that of a tar, perhaps compressed."""
    return name.lower().endswith(TAR_ENDINGS)


def stem_of(name: str) -> str:
    """A relative name without its last ending.

    >>> stem_of("a.b/c.d.jpg")
    'a.b/c.d'
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + PurePosixPath(last).stem


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
    """One item of two rows of one photo that differ in their captions alone.

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


def places_of(ids: Sequence[str], what: str) -> dict[str, int]:
    """The place of each id.

    >>> places_of(["a", "b"], "the labels")
    {'a': 0, 'b': 1}

    Raises:
        FourMError: an id stands twice; `what` says in the error where
    """
    found = {name: place for place, name in enumerate(ids)}
    if len(found) < len(ids):
        twice = repeated(ids)
        raise FourMError(
            f"the id {twice!r} stands twice in {what}, so it is not known whose values are whose; "
            "make them again from photos with ids of their own"
        )
    return found


def repeated(ids: Iterable[str]) -> str | None:
    """The first id that stands twice, or None."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None
