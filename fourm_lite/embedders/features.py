"""Region and grid features that a detector computed earlier: one file an item, read when asked.

`split_features` cuts a big TSV (bottom-up attention's) or NPZ into such a folder; `FeatureStore`
is a mapping from ids to features, loaded all at once or just in time. Never pickle.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from fourm_lite.embedders.base import Vectors, unit_length
from fourm_lite.errors import ConfigError, FourMError, ShapeError, suggest
from fourm_lite.io.files import write_json, write_npz
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.names import check_name, place_inside

Array = NDArray[Any]
SUFFIXES = (".npz", ".npy", ".safetensors")
INDEX = "index.json"
# The names that published feature files use for the same things, ours first
NAMES = {
    "features": ("features", "x", "feature"),
    "boxes": ("boxes", "bbox"),
    "height": ("height", "image_h", "img_h"),
    "width": ("width", "image_w", "img_w"),
}
TSV_COLUMNS = ("id", "width", "height", "num_boxes", "boxes", "features")


@dataclass(frozen=True)
class Features:
    """What a detector saw in one picture.

    Shapes:
        features: float32[R, E], R regions or grid cells
        boxes: float32[R, 4] or None
        size: (height, width) of the picture, or None
    """

    features: Vectors
    boxes: Vectors | None = None
    size: tuple[int, int] | None = None

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


class FeatureStore(Mapping[str, Features]):
    """Features by id; a file is opened when its id is asked for, or all at the start."""

    def __init__(self, files: Mapping[str, str | Path], *, preload: bool = False) -> None:
        """`files` is the dictionary of ids: which file holds which item."""
        self._files = {str(key): Path(path) for key, path in files.items()}
        self._loaded: dict[str, Features] = {}
        if preload:
            self._loaded = {key: read_features(path) for key, path in self._files.items()}

    @classmethod
    def open(
        cls, folder: str | Path, *, ids: Iterable[str] | None = None, preload: bool = False
    ) -> FeatureStore:
        """The store of a folder: by its index.json, else by file names without their suffix.

        Raises:
            ConfigError: no such folder, or an id of `ids` is not in it
        """
        root = Path(folder)
        if not root.is_dir():
            raise ConfigError(f"expected a folder of feature files, '{folder}' does not exist")
        index = root / INDEX
        if index.is_file():
            named = read_json_object(index)
            files = {k: place_inside(root, v, f"a file in {index}") for k, v in named.items()}
        else:
            files = {unquote(p.stem): p for p in sorted(root.iterdir()) if p.suffix in SUFFIXES}
        if ids is not None:
            chosen = [str(key) for key in ids]
            absent = [key for key in chosen if key not in files]
            if absent:
                raise ConfigError(
                    f"'{folder}' has no features for {len(absent)} ids, first '{absent[0]}'."
                    f"{suggest(absent[0], files)}"
                )
            files = {key: files[key] for key in chosen}
        return cls(files, preload=preload)

    def __getitem__(self, key: str) -> Features:
        if key in self._loaded:
            return self._loaded[key]
        if key not in self._files:
            raise UnknownItemError(f"no features for '{key}'.{suggest(key, self._files)}")
        return read_features(self._files[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: object) -> bool:
        return key in self._files

    def vectors(self, ids: Iterable[str] | None = None, *, normalize: bool = True) -> Vectors:
        """One vector an item, the mean over its regions; ready for an index.

        Shapes:
            returns: float32[N, E], unit length unless `normalize=False`
        """
        means = [self[key].features.mean(axis=0) for key in (self if ids is None else ids)]
        widths = sorted({len(mean) for mean in means})
        if len(widths) > 1:
            raise ShapeError(f"features must have one width, these have {widths}")
        if not means:
            return np.zeros((0, 0), np.float32)
        stacked = np.stack(means).astype(np.float32)
        return unit_length(stacked) if normalize else stacked


class UnknownItemError(FourMError, KeyError):
    """A store has no features for an id."""

    __str__ = Exception.__str__  # KeyError would show the message's repr


def read_features(path: str | Path) -> Features:
    """The features of one file: .npz, .npy ([R, E] or [H, W, E]) or .safetensors.

    Raises:
        FourMError: the file is missing, damaged or holds no features
    """
    path = Path(path)
    try:
        return _as_features(_read_arrays(path))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FourMError(f"'{path}' holds no readable features: {error}") from error


def split_features(source: str | Path, folder: str | Path) -> FeatureStore:
    """Cuts one big file into a folder with one .npz an item and an index.json.

    A .tsv has the columns id, width, height, num_boxes, boxes and features without a header line,
    the two last as base64 of float32 (bottom-up attention's form). An .npz holds one array an id,
    or the arrays `ids`, `features` [N, R, E] and, if any, `boxes` [N, R, 4].

    Raises:
        ConfigError: another suffix, no such file, or an id that comes twice
        FourMError: a row cannot be read; the message names the line
    """
    source, root = Path(source), Path(folder)
    readers = {".tsv": _tsv_items, ".npz": _npz_items}
    if source.suffix not in readers:
        raise ConfigError(f"expected a .tsv or .npz file, got '{source.name}'")
    if not source.is_file():
        raise ConfigError(f"expected a file of features, '{source}' does not exist")
    files: dict[str, str] = {}
    for key, item in readers[source.suffix](source):
        if key in files:
            raise ConfigError(f"'{source}' holds the id '{key}' twice")
        files[key] = check_name(f"{quote(key, safe='')}.npz", f"the file of the id {key[:80]!r}")
        _write_item(root / files[key], item)
    write_json(root / INDEX, files, indent=0)
    return FeatureStore.open(root)


def _read_arrays(path: Path) -> dict[str, Array]:
    if path.suffix == ".safetensors":
        tensors = load_tensors(path).items()
        return {n: (v.float() if v.is_floating_point() else v).numpy() for n, v in tensors}
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"features": loaded}
    with loaded as arrays:
        return dict(arrays)


def _as_features(arrays: Mapping[str, Array]) -> Features:
    found = {
        what: next((arrays[name] for name in names if name in arrays), None)
        for what, names in NAMES.items()
    }
    features, boxes, height, width = (found[what] for what in NAMES)
    if features is None:
        raise ValueError(f"no array named {NAMES['features']}, only {sorted(arrays)}")
    if features.ndim == 3:  # a grid
        features = features.reshape(-1, features.shape[-1])
    size = None if height is None or width is None else (int(height), int(width))
    return Features(
        np.asarray(features, np.float32),
        None if boxes is None else np.asarray(boxes, np.float32),
        size,
    )


def _tsv_items(path: Path) -> Iterator[tuple[str, Features]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _tsv_item(line.rstrip("\n").split("\t"))
            except (ValueError, ShapeError) as error:
                raise FourMError(
                    f"'{path}' line {number} is not {', '.join(TSV_COLUMNS)}: {error}"
                ) from error


def _tsv_item(cells: list[str]) -> tuple[str, Features]:
    row = dict(zip(TSV_COLUMNS, cells, strict=True))
    count = int(row["num_boxes"])
    boxes, features = (
        np.frombuffer(base64.b64decode(row[name], validate=True), np.float32).reshape(count, -1)
        for name in ("boxes", "features")
    )
    return row["id"], Features(features, boxes, (int(row["height"]), int(row["width"])))


def _npz_items(path: Path) -> Iterator[tuple[str, Features]]:
    with np.load(path, allow_pickle=False) as arrays:
        if "ids" not in arrays:
            for name in arrays.files:
                yield name, _as_features({"features": arrays[name]})
            return
        features = arrays["features"]
        boxes = arrays["boxes"] if "boxes" in arrays.files else None
        if len(features) != len(arrays["ids"]):
            raise ShapeError(f"{len(arrays['ids'])} ids need as many features: {features.shape}")
        for number, key in enumerate(arrays["ids"]):
            item = {"features": np.atleast_2d(features[number])}
            yield (
                str(key),
                _as_features(item if boxes is None else {**item, "boxes": boxes[number]}),
            )


def _write_item(path: Path, item: Features) -> None:
    arrays: dict[str, Any] = {"features": item.features}
    if item.boxes is not None:
        arrays["boxes"] = item.boxes
    if item.size is not None:
        arrays["height"], arrays["width"] = np.int64(item.size[0]), np.int64(item.size[1])
    write_npz(path, arrays, sync=False)  # one of many: a flush each takes longer than the work
