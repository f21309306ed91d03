"""Teachers by a word on a command line: `NAME=FILE.onnx#OUTPUT`, and networks that are callables.

Several outputs of one file are computed in one pass; an output may be any tensor of floats inside.
Feature maps are stored as float16, vectors as float32. An embedder of `fourm_lite.embedders` comes
in as a callable: this part may not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.data.pseudolabel import (
    Cuts,
    EdgeLabeller,
    GivenMaps,
    Labeller,
    MetadataLabeller,
    OnnxTeacher,
    PaletteLabeller,
)
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError, suggest
from fourm_lite.photos.ids import places_of
from fourm_lite.reading.arrays import open_npz

Array = npt.NDArray[Any]
FORMULAS: dict[str, Callable[[], Labeller]] = {
    "canny_edge": EdgeLabeller,
    "color_palette": PaletteLabeller,
    "metadata": MetadataLabeller,
}
"""Labels that need no network."""


@dataclass
class NetworkLabeller:
    """What a network says of each crop, as a callable over PIL pictures.

    Shapes:
        run: list of n pictures -> float[n, E] vectors, or float[n, L, E] maps of a square grid
    Units:
        spec: what the network is called, to tell it from another that makes the same label
    """

    name: str
    run: Callable[[list[Any]], Array]
    batch: int = 16
    spec: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The one label that it makes."""
        return (self.name,)

    def __call__(self, cuts: Cuts) -> dict[str, Array]:
        """Vectors float32[B, n, E], or maps float16[B, n, E, h, w]."""
        from PIL import Image

        flat = [Image.fromarray(p) for p in cuts.pixels.reshape(-1, *cuts.pixels.shape[2:])]
        parts = [self.run(flat[i : i + self.batch]) for i in range(0, len(flat), self.batch)]
        values = np.concatenate(parts)
        if values.ndim == 3:
            values = _as_maps(values, self.name)
        return {self.name: values.reshape(*cuts.pixels.shape[:2], *values.shape[1:])}


def _as_maps(rows: Array, name: str) -> Array:
    side = round(rows.shape[1] ** 0.5)
    if side * side != rows.shape[1]:
        raise ShapeError(f"{name!r}: {rows.shape[1]} cells fill no square; give a square picture")
    maps = rows.transpose(0, 2, 1).reshape(len(rows), rows.shape[2], side, side)
    return np.ascontiguousarray(maps, dtype=np.float16)


def formulas(names: Sequence[str]) -> list[Labeller]:
    """The labellers without a network, by the names of their labels.

    Raises:
        UnknownNameError: there is no such label
    """
    for name in names:
        if name not in FORMULAS:
            raise UnknownNameError(
                f"no label {name!r} is made without a network.{suggest(name, FORMULAS)} "
                f"Known: {', '.join(FORMULAS)}"
            )
    return [FORMULAS[name]() for name in names]


def onnx_teachers(words: Sequence[str], *, size: int = 224) -> list[Labeller]:
    """The teachers behind words of the form `NAME=FILE.onnx#OUTPUT`, one for each file.

    Raises:
        ConfigError: a word has another form, or the file no such output
        FourMError: the file is missing or no ONNX file
    """
    by_file: dict[Path, dict[str, str]] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        file, mark, output = rest.rpartition("#")
        if not (name and equals and file and mark and output):
            raise ConfigError(
                f"a teacher is written NAME=FILE.onnx#OUTPUT, such as "
                f"global=net.onnx#embedding, got {word!r}"
            )
        by_file.setdefault(Path(file).expanduser(), {})[name] = output
    return [_onnx_teacher(file, outputs, size) for file, outputs in by_file.items()]


def _onnx_teacher(file: Path, outputs: dict[str, str], size: int) -> Labeller:
    teacher = OnnxTeacher(file, outputs, size=size)
    ranks = teacher.ranks()
    teacher.half = frozenset(name for name, output in outputs.items() if ranks[output] > 2)
    return teacher


def given_maps(path: Path, *, map_size: int = 56) -> GivenMaps:
    """Class maps of whole photos from an npz file that holds `ids` and one array of maps.

    Raises:
        FourMError: the file is missing, holds something else, or an id twice
    """
    with open_npz(path) as data:
        names = [n for n in data.files if n != "ids"]
        if "ids" not in data.files or len(names) != 1:
            raise FourMError(
                f"{path} should hold `ids` and one array of maps, it holds {data.files}"
            )
        ids, maps = data.rows("ids", names[0])
    places = places_of([str(i) for i in ids], str(path))
    return GivenMaps({name: maps[place] for name, place in places.items()}, map_size)
