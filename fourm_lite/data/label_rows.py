"""Labels of `pseudolabel` as a table that stays on disk: feature maps are larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import FourMError
from fourm_lite.photos.item import places_of
from fourm_lite.reading.arrays import open_npz

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
