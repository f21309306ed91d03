"""Region and grid features that a detector computed earlier, by id, read when they are asked for.

`FeatureStore` is a mapping from ids to features, over one folder or file in any of the published
forms (`feature_files.py`), all at once or just in time. `split_features` cuts a big file into a
folder of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from fourm_lite.embedders.base import Vectors, unit_length
from fourm_lite.embedders.feature_files import (
    SUFFIXES,
    Features,
    Rows,
    found_in,
    is_table,
    open_rows,
    pack,
    read_features,
)
from fourm_lite.errors import ConfigError, FourMError, ShapeError, suggest
from fourm_lite.io.files import write_json, write_whole
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.names import check_name, place_inside
from fourm_lite.progress import Progress

INDEX = "index.json"
MARK = "::"
"""Between a file of many and an id, in what `FeatureStore.where` says."""

__all__ = [
    "FeatureStore", "Features", "UnknownItemError", "read_features", "read_place", "split_features",
]  # fmt: skip


class FeatureStore(Mapping[str, Features]):
    """Features by id; each is read when its id is asked for, or all at the start."""

    def __init__(
        self,
        files: Mapping[str, str | Path | Callable[[], Features]],
        *,
        preload: bool = False,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """`files` is the dictionary of ids: which file holds which item, or what reads it."""
        self._files: Rows = {
            str(key): file if callable(file) else partial(read_features, Path(file))
            for key, file in files.items()
        }
        self._places = dict(places or {}) or {
            str(key): str(file) for key, file in files.items() if not callable(file)
        }
        self._loaded: dict[str, Features] = {}
        if preload:
            self._loaded = {key: read() for key, read in self._files.items()}

    @classmethod
    def open(
        cls, source: str | Path, *, ids: Iterable[str] | None = None, preload: bool = False
    ) -> FeatureStore:
        """The store of a folder or of a file of many items.

        A folder is read by its index.json, else by file names without their suffix, else from the
        .tsv files in it.

        Raises:
            ConfigError: nothing is there, it holds no features, or an id of `ids` is not in it
            FourMError: a file cannot be read
        """
        root = Path(source).expanduser()
        if not root.exists():
            raise ConfigError(f"expected a folder or file of features, '{source}' does not exist")
        files, places = _of_file(root) if root.is_file() else _of_folder(root)
        if ids is not None:
            chosen = [str(key) for key in ids]
            absent = [key for key in chosen if key not in files]
            if absent:
                raise ConfigError(
                    f"'{source}' has no features for {len(absent)} ids, first '{absent[0]}'."
                    f"{suggest(absent[0], files)}"
                )
            files = {key: files[key] for key in chosen}
        return cls(files, preload=preload, places=places)

    def __getitem__(self, key: str) -> Features:
        if key in self._loaded:
            return self._loaded[key]
        if key not in self._files:
            raise UnknownItemError(f"no features for '{key}'.{suggest(key, self._files)}")
        return self._files[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: object) -> bool:
        return key in self._files

    def where(self, key: str) -> str:
        """Where an item lies: its file, or a file of many and the id; `read_place` reads it."""
        return self._places[key]

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


def read_place(place: str) -> Features:
    """The features that `FeatureStore.where` names.

    Raises:
        FourMError: they are not there any more
    """
    path, mark, key = place.partition(MARK)
    if not mark:
        return read_features(path)
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError as error:
        raise FourMError(f"'{path}' cannot be read any more: {error}") from error
    return _opened(path, changed)[key]


@lru_cache(maxsize=4)
def _opened(path: str, changed: int) -> FeatureStore:
    """A file of many stays open while its items are asked for, until it changes."""
    return FeatureStore.open(path)


def split_features(
    source: str | Path, folder: str | Path, progress: Progress | None = None
) -> FeatureStore:
    """Cuts one big file, or copies any store, into a folder with one .npz an item and index.json.

    A .tsv has the columns id, width, height, num_boxes, boxes and features (bottom-up attention),
    or id, num_boxes and features with their geometry (VinVL), without a header line, arrays as
    base64 of float32. A .pt is Oscar's dictionary of ids. An .npz holds one array an id, or the
    arrays `ids`, `features` [N, R, E] and, if any, `boxes` [N, R, 4]. A folder may hold M3P's .pt
    files or those of any store. `progress` is told how many items are done.

    Raises:
        ConfigError: another suffix, no such file, no item, or an id that comes twice
        FourMError: a row cannot be read; the message names the line
    """
    store, root = FeatureStore.open(source), Path(folder)
    files: dict[str, str] = {}
    for number, (key, item) in enumerate(store.items(), 1):
        files[key] = check_name(f"{quote(key, safe='')}.npz", f"the file of the id {key[:80]!r}")
        _write_item(root / files[key], item)
        if progress is not None:
            progress(number, len(store))
    write_json(root / INDEX, files, indent=0)
    return FeatureStore.open(root)


def _of_folder(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    index = root / INDEX
    if index.is_file():
        named = read_json_object(index)
        files: dict[str, Any] = {
            k: place_inside(root, v, f"a file in {index}") for k, v in named.items()
        }
        return files, {key: str(path) for key, path in files.items()}
    items = {unquote(p.stem): p for p in sorted(root.iterdir()) if p.suffix in SUFFIXES}
    if items:
        return dict(items), {key: str(path) for key, path in items.items()}
    files = {}
    places: dict[str, str] = {}
    for table in sorted(p for p in root.iterdir() if is_table(p)):
        rows, lie = _of_file(table)
        if twice := sorted(set(rows) & set(files)):
            raise ConfigError(f"'{root}' holds the id '{twice[0]}' twice")
        files |= rows
        places |= lie
    if not files:
        raise ConfigError(
            f"'{root}' holds no features: expected {', '.join(SUFFIXES)} or .tsv files, found "
            f"{found_in(root)}"
        )
    return files, places


def _of_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    rows = open_rows(path)
    return dict(rows), {key: f"{path}{MARK}{key}" for key in rows}


def _write_item(path: Path, item: Features) -> None:
    # one of many: a flush each takes longer than the work
    write_whole(path, pack(item), sync=False)
