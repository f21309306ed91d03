"""Labels of `pseudolabel` as a table that stays on disk: feature maps are larger than memory.

A shard notes what each photo held, for a photo that was replaced keeps its id, and with it
everything that is found by ids. Shards that were made before contents were noted are taken as they
are, and so is a photo that cannot be read any more: only another photo under the same name makes a
shard stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import write_json
from fourm_lite.photos.item import places_of
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
    """Whether a file was made of what the note describes; also where nothing is known."""
    beside = path.with_suffix(".json")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))[CONTENT]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return not note or not before or bool(before == note)


def write_note(path: Path, note: str) -> None:
    """Notes beside a file what it is made of."""
    write_json(path.with_suffix(".json"), {CONTENT: note})


Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelRows:
    """One label of some photos, in an order of its own.

    Shapes:
        shards: [n, crops, ...] each, mapped from their files
        places: int64[N, 2], shard and row of each photo
    """

    shards: Sequence[Array]
    places: npt.NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, name: str, wanted: Sequence[str]) -> LabelRows:
        """The label `name` of a folder of `pseudolabel`, in the order of the ids `wanted`.

        Raises:
            FourMError: there is no such label, it lacks a photo, or an id stands in it twice
        """
        paths = label_paths(folder, name)
        ids: list[str] = []
        rows: list[tuple[int, int]] = []
        for number, path in enumerate(paths):
            with open_npz(path) as data:
                ids += [str(i) for i in data["ids"]]
                rows += [(number, row) for row in range(len(data["ids"]))]
        places = places_of(ids, f"the label {name!r} of {folder}")
        where = {i: rows[place] for i, place in places.items()}
        missing = [i for i in wanted if i not in where]
        if missing:
            raise FourMError(
                f"{len(missing)} samples have no label {name!r} in {folder}, such as {missing[0]!r}"
            )
        chosen = np.array([where[i] for i in wanted], dtype=np.int64).reshape(-1, 2)
        return cls([mapped(path, "values") for path in paths], chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, crops, ...]."""
        return (len(self.places), *self.shards[0].shape[1:])

    def at(self, index: int, crop: int) -> Array:
        """One crop of one photo, read from disk: [...]."""
        shard, row = self.places[index]
        return np.array(self.shards[shard][row, crop])


def mapped(path: Path, name: str) -> Array:
    """An array of an uncompressed npz file, mapped and not read; a compressed one is read.

    Source:
        numpy's npz is a zip of npy files; the data of a stored member lie in one piece
    """
    with open_npz(path) as data:
        place = data.stored(name)
        if place is None:
            whole: Array = data[name]
            return whole
    return np.memmap(
        path, dtype=place.dtype, mode="r", offset=place.offset, shape=place.shape,
        order="F" if place.fortran else "C",
    )  # fmt: skip


def label_paths(folder: Path, name: str) -> list[Path]:
    """The shards of one label, in order.

    Raises:
        FourMError: the folder holds no such label
    """
    paths = sorted((Path(folder) / name).glob("shard-*.npz"))
    if not paths:
        known = sorted(p.name for p in Path(folder).glob("*") if p.is_dir())
        raise FourMError(f"expected labels {name!r} in {folder}, found {known}")
    return paths


def read_labels(folder: Path, name: str) -> tuple[list[str], npt.NDArray[Any]]:
    """All shards of one label, joined: ids and [N, n, ...].

    Raises:
        FourMError: the folder holds no such label
    """
    paths = label_paths(folder, name)
    ids: list[str] = []
    values: list[npt.NDArray[Any]] = []
    for path in paths:
        with open_npz(path) as data:
            names, rows = data.rows("ids", "values")
        if values and rows.shape[1:] != values[0].shape[1:]:
            raise FourMError(f"{path} and {paths[0].name} hold unlike rows; make the label again")
        ids += [str(i) for i in names]
        values.append(rows)
    return ids, np.concatenate(values)


def read_vectors(folder: Path, name: str) -> tuple[list[str], npt.NDArray[Any]]:
    """A label that is a vector, as `read_labels`: ids and [N, n, E].

    Raises:
        FourMError: there is no such label, or it is no vector
    """
    ids, values = read_labels(folder, name)
    if values.ndim != 3:
        raise FourMError(f"expected vectors, the label {name!r} is {list(values.shape[2:])}")
    return ids, values
