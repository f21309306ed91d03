"""Whether what was made of photos still belongs to them: a shard notes what each photo held.

A photo that was replaced keeps its id, and with it everything that is found by ids. Shards that
were made before contents were noted are taken as they are, and so is a photo that cannot be read
any more: only another photo under the same name makes a shard stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_json
from fourm_lite.photos.records import Record
from fourm_lite.reading.arrays import open_npz
from fourm_lite.reading.regular import read_photo

CONTENT = "content"
Digests = npt.NDArray[np.str_]


def digests(records: Sequence[Record]) -> Digests:
    """A hash of the photo behind each record, "" where there is none or it cannot be read."""
    return np.array([_digest(record) for record in records], dtype=np.str_)


def _digest(record: Record) -> str:
    if not record.has_photo:
        return ""
    try:
        made = hashlib.blake2b(record.read(), digest_size=8)
        if record.mix is not None:
            made.update(read_photo(record.mix.image))
    except OSError:
        return ""
    return made.hexdigest()


def is_stale(path: Path, now: Digests) -> bool:
    """Whether a photo of a shard was replaced since the shard was written."""
    with open_npz(path) as data:
        if CONTENT not in data:
            return False
        before = data[CONTENT]
    if before.shape != now.shape:
        return True
    return bool(((before != now) & (now != "")).any())


def lacks(path: Path, now: Digests) -> bool:
    """Whether a shard is to be made: it is not there, or stale."""
    return not path.is_file() or is_stale(path, now)


def check_others(out: Path, shard: str, made: Sequence[str], now: Digests) -> None:
    """Refuses to make some labels of photos that were replaced, where others keep the old ones.

    Raises:
        ConfigError: a label that this run does not make is of the photos before
    """
    others = (path for path in sorted(out.glob(f"*/{shard}")) if path.parent.name not in made)
    stale = [path.parent.name for path in others if is_stale(path, now)]
    if stale:
        raise ConfigError(
            f"photos of {shard} were replaced since the label {stale[0]!r} in {out} was made, and "
            f"this run does not make it; give what makes {', '.join(map(repr, stale))} too, or "
            "choose another folder"
        )


def note_of(values: Any) -> str:
    """A hash of what one shard of tokens is made of: digests, or an array of labels."""
    array = np.ascontiguousarray(values)
    made = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=8)
    made.update(array.view(np.uint8).data if array.size else b"")
    return made.hexdigest()


def has_note(path: Path, note: str) -> bool:
    """Whether a file was made of what the note tells; also where nothing is known."""
    beside = path.with_suffix(".json")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))[CONTENT]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return not note or not before or bool(before == note)


def write_note(path: Path, note: str) -> None:
    """Notes beside a file what it is made of."""
    write_json(path.with_suffix(".json"), {CONTENT: note})
