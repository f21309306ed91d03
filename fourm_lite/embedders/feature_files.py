"""The files in which detectors leave region and grid features, each form read by one function.

A file holds one item (.npz, .npy, .safetensors, M3P's .pt) or many (bottom-up attention's and
VinVL's .tsv, Oscar's .pt, an .npz of many). Pickled files are opened as tensors and arrays only.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm_lite.embedders.base import Vectors
from fourm_lite.embedders.pth import load_plain
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.reading.arrays import open_npz, read_npy_file
from fourm_lite.reading.regular import check_size

Array = NDArray[Any]
Number = int | float
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")
# The names that published feature files use for the same things, ours first
NAMES = {
    "features": ("features", "x", "feature"),
    "boxes": ("boxes", "bbox", "norm_bb"),
    "height": ("height", "image_h", "img_h"),
    "width": ("width", "image_w", "img_w"),
}
BOTTOM_UP = ("id", "width", "height", "num_boxes", "boxes", "features")
VINVL = ("id", "num_boxes", "features")
# UNITER's files hold more regions than it reads: those that the detector is this sure of, and how
# many at least and at most
SURE, FEWEST, MOST = 0.2, 10, 100
# What Oscar and VinVL put behind the features: x1 y1 x2 y2 w h in parts of the picture's size
GEOMETRY = 6


@dataclass(frozen=True)
class Features:
    """What a detector saw in one picture.

    Shapes:
        features: float32[R, E], R regions or grid cells
        boxes: float32[R, 4] or None, x1 y1 x2 y2 in the units of `size`
        size: (height, width) of the picture, or None; (1, 1) where boxes are parts of it
    """

    features: Vectors
    boxes: Vectors | None = None
    size: tuple[Number, Number] | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ShapeError(f"features must be [R, E], got {list(self.features.shape)}")
        if not np.isfinite(self.features).all():
            raise FourMError("features hold NaN or infinite values; extract that picture again")
        if self.boxes is not None and self.boxes.shape != (len(self.features), 4):
            raise ShapeError(
                f"{len(self.features)} regions need boxes [{len(self.features)}, 4], "
                f"got {list(self.boxes.shape)}"
            )
        if self.size is not None and min(self.size) <= 0:
            raise ShapeError(f"a picture's size is more than 0, got {self.size}")


Rows = dict[str, Callable[[], Features]]
"""Ids and what reads each."""


def read_features(path: str | Path) -> Features:
    """The features of one file: .npz, .npy ([R, E] or [H, W, E]), .safetensors or M3P's .pt.

    Raises:
        FourMError: the file is missing, damaged or holds no features
    """
    path = Path(path)
    try:
        return as_features(_read_arrays(path))
    except (OSError, ValueError, LookupError, EOFError, TypeError, ArithmeticError) as error:
        raise FourMError(f"'{path}' holds no readable features: {error}") from error


def is_table(path: Path) -> bool:
    """Whether a file is a TSV of features; Flickr30k's come as `*.tsv.1`, `*.tsv.3`."""
    return re.search(r"\.tsv(\.\d+)?$", path.name) is not None


def open_rows(path: Path) -> Rows:
    """The items of a file of many, read when they are asked for where the form allows it.

    Raises:
        ConfigError: another suffix, or an id that comes twice
        FourMError: the file cannot be read
    """
    readers: dict[str, Callable[[Path], Iterable[tuple[str, Callable[[], Features]]]]] = {
        ".npz": _npz_rows,
        ".pt": _pt_rows,
        ".pth": _pt_rows,
    }
    reader = _tsv_rows if is_table(path) else readers.get(path.suffix)
    if reader is None:
        raise ConfigError(f"expected a .tsv, .npz or .pt file of features, got '{path.name}'")
    if not path.is_file():
        raise ConfigError(f"expected a file of features, '{path}' does not exist")
    rows: Rows = {}
    for key, read in reader(path):
        if key in rows:
            raise ConfigError(f"'{path}' holds the id '{key}' twice")
        rows[key] = read
    if not rows:
        raise ConfigError(f"'{path}' holds no item")
    return rows


def found_in(folder: Path) -> str:
    """What a folder holds, by suffix, for a message."""
    count = Counter(p.suffix or "without suffix" for p in folder.iterdir() if p.is_file())
    folders = sum(p.is_dir() for p in folder.iterdir())
    told = [f"{number} {suffix}" for suffix, number in count.most_common()]
    return ", ".join([*told, *([f"{folders} folders"] if folders else [])]) or "nothing"


def as_features(arrays: Mapping[str, Any]) -> Features:
    """Features under any of the published names.

    Raises:
        ValueError: none of the names is there
    """
    found = {
        what: next((arrays[name] for name in names if name in arrays), None)
        for what, names in NAMES.items()
    }
    features, boxes, height, width = (found[what] for what in NAMES)
    if features is None:
        raise ValueError(f"no array named {NAMES['features']}, only {sorted(arrays)}")
    values = np.asarray(features, np.float32)
    if values.ndim == 3:  # a grid
        values = values.reshape(-1, values.shape[-1])
    size = None if height is None or width is None else (_number(height), _number(width))
    places = None if boxes is None else np.asarray(boxes, np.float32)
    if places is not None and boxes is arrays.get("norm_bb"):  # UNITER: parts of the picture
        kept = _sure(arrays.get("conf"), len(values))
        return Features(values[:kept], np.ascontiguousarray(places[:kept, :4]), (1, 1))
    return Features(values, places, size)


def _sure(confidence: Any, count: int) -> int:
    """How many of UNITER's regions are read; they are in the order of the detector's confidence."""
    if confidence is None:
        return count
    sure = int((np.asarray(confidence).reshape(-1) > SURE).sum())
    return min(max(sure, FEWEST), MOST, count)


def with_geometry(rows: Array) -> Features:
    """Oscar's and VinVL's rows: features with their geometry behind, in parts of the picture."""
    if rows.ndim != 2 or rows.shape[1] <= GEOMETRY:
        raise ShapeError(f"rows are [R, E + {GEOMETRY}], got {list(rows.shape)}")
    values = np.asarray(rows, np.float32)
    boxes = values[:, -GEOMETRY : -GEOMETRY + 4]
    return Features(
        np.ascontiguousarray(values[:, :-GEOMETRY]), np.ascontiguousarray(boxes), (1, 1)
    )


def _number(value: Any) -> Number:
    number = float(value)
    return int(number) if number.is_integer() else number


def _read_arrays(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        tensors = load_tensors(path).items()
        return {n: (v.float() if v.is_floating_point() else v).numpy() for n, v in tensors}
    if path.suffix in (".pt", ".pth"):
        held = load_plain(path, arrays=True)
        if not isinstance(held, Mapping):
            raise ValueError(f"a dictionary was expected, it holds {type(held).__name__}")
        return held
    if path.suffix == ".npy":
        return {"features": read_npy_file(path)}
    with open_npz(path) as arrays:
        return dict(arrays)


def _pt_rows(path: Path) -> Iterator[tuple[str, Callable[[], Features]]]:
    """Oscar's dictionary of ids; M3P's file of one picture is under its own name."""
    held = load_plain(path, arrays=True)
    if not isinstance(held, Mapping) or not held:
        raise ConfigError(f"'{path}' holds no dictionary of features, but {type(held).__name__}")
    if any(name in held for name in NAMES["features"]):
        yield path.stem, partial(read_features, path)
        return
    for key, rows in held.items():
        if getattr(rows, "ndim", 0) != 2:
            raise ConfigError(
                f"'{path}' is no file of features: its '{key}' is no table [R, {GEOMETRY} + E]"
            )
        yield str(key), partial(with_geometry, np.asarray(rows))


def _tsv_rows(path: Path) -> Iterator[tuple[str, Callable[[], Features]]]:
    """Ids and places in the file; a row is decoded when it is asked for."""
    check_size(path)
    with path.open("rb") as lines:
        place = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                key = line.split(b"\t", 1)[0].decode("utf-8", "replace")
                yield key, partial(_tsv_row, path, place, number)
            place += len(line)


def _tsv_row(path: Path, place: int, number: int) -> Features:
    with path.open("rb") as lines:
        lines.seek(place)
        cells = lines.readline().decode("utf-8", "replace").rstrip("\r\n").split("\t")
    reader = _vinvl_item if len(cells) == len(VINVL) else _bottom_up_item
    try:
        return reader(cells)
    except (ValueError, ShapeError) as error:
        raise FourMError(
            f"'{path}' line {number} is not {', '.join(BOTTOM_UP)} (bottom-up attention) nor "
            f"{', '.join(VINVL)} (VinVL): {error}"
        ) from error


def _bottom_up_item(cells: list[str]) -> Features:
    row = dict(zip(BOTTOM_UP, cells, strict=True))
    count = int(row["num_boxes"])
    boxes, features = (_table(row[name], count) for name in ("boxes", "features"))
    return Features(features, boxes, (_number(row["height"]), _number(row["width"])))


def _vinvl_item(cells: list[str]) -> Features:
    row = dict(zip(VINVL, cells, strict=True))
    return with_geometry(_table(row["features"], int(row["num_boxes"])))


def _table(text: str, rows: int) -> Vectors:
    values = np.frombuffer(base64.b64decode(text, validate=True), np.float32)
    return values.reshape(rows, -1).copy()


def _npz_rows(path: Path) -> Iterator[tuple[str, Callable[[], Features]]]:
    """One array an id, or `ids` with `features` [N, R, E] and perhaps `boxes`; or one item."""
    with open_npz(path) as arrays:
        held = dict(arrays)
        if "ids" in held:
            arrays.rows("ids", "features")
    if "ids" not in held:
        if any(name in held for name in NAMES["boxes"]):
            yield path.stem, partial(read_features, path)
            return
        for name, rows in held.items():
            yield name, partial(as_features, {"features": rows})
        return
    features = held["features"]
    if len(features) != len(held["ids"]):
        raise ShapeError(f"{len(held['ids'])} ids need as many features: {features.shape}")
    for number, key in enumerate(held["ids"]):
        item = {"features": np.atleast_2d(features[number])}
        if "boxes" in held:
            item["boxes"] = held["boxes"][number]
        yield str(key), partial(as_features, item)


def pack(item: Features) -> bytes:
    """An item as the bytes of an .npz, the same for the same item."""
    arrays: dict[str, Any] = {"features": item.features}
    if item.boxes is not None:
        arrays["boxes"] = item.boxes
    if item.size is not None:
        arrays["height"], arrays["width"] = (np.asarray(n) for n in item.size)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def unpack(data: bytes) -> Features:
    """The item that `pack` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return as_features(dict(arrays))
