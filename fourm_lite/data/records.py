"""Photos and captions in any of the forms that they come in, as records.

One function for all verbs and recipes: a list (JSONL, Parquet), a folder of photos, a text.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path

from fourm_lite.data.sources import Record, choose_split, read_caption_list
from fourm_lite.errors import FourMError

LIST = "captions.jsonl"
_NAMES = "jpg jpeg jpe jfif mpo png webp gif bmp tif tiff ppm avif jp2"
ENDINGS = frozenset(_NAMES.split())


def read_records(path: str | Path, *, split: str | None = None) -> list[Record]:
    """The records of a source.

    Args:
        path: a JSONL or Parquet list; a folder that holds captions.jsonl; a folder of photos; or
            captions alone, one a line, in a .txt or .txt.gz file
        split: of a list; the other forms know no splits and are taken whole

    Raises:
        FourMError: the source is of no such form, or holds nothing
        UnknownNameError: the list has no such split
    """
    place = Path(path).expanduser()
    if place.is_dir() and (place / LIST).is_file():
        place = place / LIST
    if place.is_dir():
        return read_photos(place)
    if place.name.endswith((".txt", ".txt.gz")):
        return read_texts(place)
    if place.suffix not in (".jsonl", ".parquet"):
        raise FourMError(
            f"expected a folder of photos, a .jsonl or .parquet list, or a .txt or .txt.gz of "
            f"captions, got {place}"
        )
    records = read_caption_list(place)
    if not records:
        raise FourMError(f"{place} holds no line; give a list with at least one photo")
    return records if not split else choose_split(records, split)


def read_photos(root: Path) -> list[Record]:
    """Every photo below a folder, without captions; its path without the ending is its id.

    Raises:
        FourMError: there are none, or two differ in their ending alone
    """
    paths = [p for p in sorted(root.rglob("*")) if p.suffix[1:].lower() in ENDINGS and p.is_file()]
    if not paths:
        raise FourMError(f"{root} holds no photos; known endings: {', '.join(sorted(ENDINGS))}")
    ids = [p.relative_to(root).with_suffix("").as_posix() for p in paths]
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise FourMError(f"{root} holds {count} photos named {name!r}; rename all but one")
    return [Record(i, p) for i, p in zip(ids, paths, strict=True)]


def read_texts(path: Path) -> list[Record]:
    """Captions without photos, one a line; empty lines are left out.

    Raises:
        FourMError: the file cannot be read as text, or is empty
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FourMError(f"cannot read the captions {path}: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise FourMError(f"{path} holds no captions; give a text with one caption a line")
    # The hash makes the ids, and with them a run's fingerprint, tell these captions from others.
    return [
        Record(f"{i:06d}-{hashlib.sha256(line.encode()).hexdigest()[:8]}", b"", (line,))
        for i, line in enumerate(lines)
    ]


def read_spoken(path: str | Path, *, split: str | None = None) -> list[Record]:
    """The captions of a source as texts of their own: one record each, no photo.

    Raises:
        as `read_records`; FourMError: a record has no caption
    """
    records = read_records(path, split=split)
    silent = [r.id for r in records if not r.captions]
    if silent:
        raise FourMError(f"{len(silent)} records of {path} have no caption, such as {silent[0]!r}")
    if not any(r.has_photo for r in records):
        return records
    return [Record(f"{r.id}#{k}", b"", (c,)) for r in records for k, c in enumerate(r.captions)]
