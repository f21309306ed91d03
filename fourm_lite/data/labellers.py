"""What labels each crop of a photo: networks and formulas; and the words that name them.

A teacher on a command line is `NAME=FILE.onnx#OUTPUT`. Several outputs of one file are computed in
one pass; an output may be any tensor of floats inside. Feature maps are stored as float16, vectors
as float32. An embedder of `fourm_lite.embedders` comes in as a callable: this part may not import
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.data.palette import canny, describe, palette
from fourm_lite.errors import ConfigError, FourMError, ShapeError, check_choice
from fourm_lite.io.onnx_files import open_session
from fourm_lite.modalities.crops import cut_labels
from fourm_lite.modalities.spec import Crop
from fourm_lite.photos.item import Skipped, places_of
from fourm_lite.photos.records import Record
from fourm_lite.reading.arrays import open_npz

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cuts:
    """The crops of some photos, decoded; photos that cannot be read are left out.

    Shapes:
        pixels: uint8[B, n, S, S, 3], B photos of n crops each
    """

    records: Sequence[Record]
    crops: Sequence[Sequence[Crop]]
    sizes: Sequence[tuple[int, int]]
    pixels: Pixels
    left_out: tuple[Skipped, ...] = ()


class Labeller(Protocol):
    """Makes labels of each crop."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that it makes."""
        ...

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """One array [B, n, ...] for each of `names`."""
        ...


@dataclass
class OnnxTeacher:
    """Outputs of a network in an ONNX file, called with pixels in [0, 1].

    Units:
        outputs: label name -> output of the file, or a tensor inside its graph; half: stored as
            float16
    """

    path: Path
    outputs: Mapping[str, str]
    size: int = 224
    threads: int = 1
    half: frozenset[str] = frozenset()
    batch: int = 16
    _session: Any = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that it makes."""
        return tuple(self.outputs)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Runs the network over all crops."""
        count = cuts.pixels.shape[:2]
        flat = cuts.pixels.reshape(-1, *cuts.pixels.shape[2:])
        parts = [self._run(flat[i : i + self.batch]) for i in range(0, len(flat), self.batch)]
        out: dict[str, npt.NDArray[Any]] = {}
        for k, name in enumerate(self.outputs):
            value = np.concatenate([p[k] for p in parts])
            value = value.astype(np.float16) if name in self.half else value
            out[name] = value.reshape(*count, *value.shape[1:])
        return out

    def ranks(self) -> dict[str, int]:
        """Every output of the file and what else is asked for, and how many axes each has.

        Raises:
            ConfigError: an output is neither one of the file nor a tensor of floats in its graph
        """
        self._open()
        return {o.name: len(o.shape) for o in self._session.get_outputs()}

    def _open(self) -> None:
        if self._session is None:
            self._session = open_session(
                self.path, threads=self.threads, outputs=list(self.outputs.values())
            )

    def _run(self, pixels: Pixels) -> list[npt.NDArray[Any]]:
        self._open()
        x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / 255.0
        result: list[npt.NDArray[Any]] = self._session.run(
            list(self.outputs.values()), {self._session.get_inputs()[0].name: x}
        )
        return result


@dataclass
class SegmentationTeacher:
    """Class maps of an ONNX segmentation network, by argmax after enlarging its scores.

    Units:
        size: side that the network reads, 32k + 1; map_size: side of the class map
    """

    path: Path
    size: int = 385
    map_size: int = 56
    threads: int = 1
    names: tuple[str, ...] = ("semseg",)
    _session: Any = field(default=None, repr=False)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Class maps uint8[B, n, map_size, map_size]."""
        flat = cuts.pixels.reshape(-1, *cuts.pixels.shape[2:])
        maps = np.stack([self._one(pixels) for pixels in flat])
        return {self.names[0]: maps.reshape(*cuts.pixels.shape[:2], *maps.shape[1:])}

    def _one(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        if self._session is None:
            self._session = open_session(self.path, threads=self.threads)
        image = Image.fromarray(pixels).resize((self.size,) * 2, Image.Resampling.BICUBIC)
        x = (np.asarray(image).transpose(2, 0, 1)[None] / 255).astype(np.float32)
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: x})
        scores = torch.nn.functional.interpolate(
            torch.from_numpy(logits), (self.map_size,) * 2, mode="bilinear", align_corners=True
        )
        return scores[0].argmax(0).to(torch.uint8).numpy()


@dataclass
class GivenMaps:
    """Class maps that somebody made before, cut as the photo is cut.

    Shapes:
        maps: id -> uint8[h, w] of the whole photo
    """

    maps: Mapping[str, Pixels]
    map_size: int = 56
    names: tuple[str, ...] = ("semseg",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Class maps uint8[B, n, map_size, map_size]."""
        absent = [r.id for r in cuts.records if r.id not in self.maps]
        if absent:
            raise FourMError(f"{len(absent)} photos have no class map, such as {absent[0]!r}")
        rows = [
            [cut_labels(self.maps[r.id], c, of=size, size=self.map_size) for c in crop]
            for r, crop, size in zip(cuts.records, cuts.crops, cuts.sizes, strict=True)
        ]
        return {self.names[0]: np.array(rows, dtype=np.uint8)}


@dataclass
class EdgeLabeller:
    """Canny edges, eight pixels a byte."""

    sigma: float = 1.4
    low: float = 0.04
    high: float = 0.10
    names: tuple[str, ...] = ("canny_edge",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Packed edges uint8[B, n, S, S/8]; `unpack_edges` gives them back."""
        rows = []
        for pixels in cuts.pixels:
            image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            rows.append(canny(image, sigma=self.sigma, low=self.low, high=self.high).numpy())
        return {self.names[0]: np.packbits(np.stack(rows), axis=-1)}


def unpack_edges(packed: Pixels) -> npt.NDArray[np.bool_]:
    """Edges of an `EdgeLabeller`: uint8[..., S, S/8] -> bool[..., S, S]."""
    return np.unpackbits(packed, axis=-1).astype(bool)


@dataclass
class PaletteLabeller:
    """The main colours of each crop, padded with -1."""

    count: int = 7
    names: tuple[str, ...] = ("color_palette",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Colours int16[B, n, count, 3], the most frequent first."""
        out = np.full((*cuts.pixels.shape[:2], self.count, 3), -1, dtype=np.int16)
        for i, j in np.ndindex(out.shape[:2]):
            colors = palette(cuts.pixels[i, j], self.count)
            out[i, j, : len(colors)] = colors
        return {self.names[0]: out}


METADATA = ("original_width", "original_height", "colorfulness", "brightness", "contrast",
            "saturation", "entropy")  # fmt: skip
"""What `MetadataLabeller` writes, in the order of its last axis."""


@dataclass
class MetadataLabeller:
    """Numbers of each crop, in the order of `METADATA`; width and height are those of the file."""

    names: tuple[str, ...] = ("metadata",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """float32[B, n, len(METADATA)]."""
        out = np.zeros((*cuts.pixels.shape[:2], len(METADATA)), dtype=np.float32)
        for i, j in np.ndindex(out.shape[:2]):
            height, width = cuts.sizes[i]
            numbers = describe(cuts.pixels[i, j])
            numbers |= {"original_width": float(width), "original_height": float(height)}
            out[i, j] = [numbers[name] for name in METADATA]
        return {self.names[0]: out}


@dataclass
class NetworkLabeller:
    """What a network gives for each crop, as a callable over PIL pictures.

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


FORMULAS: dict[str, Callable[[], Labeller]] = {
    "canny_edge": EdgeLabeller,
    "color_palette": PaletteLabeller,
    "metadata": MetadataLabeller,
}
"""Labels that need no network."""


def formulas(names: Sequence[str]) -> list[Labeller]:
    """The labellers without a network, by the names of their labels.

    Raises:
        UnknownNameError: there is no such label
    """
    check_choice("a label that needs no network", *names, of=FORMULAS)
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
