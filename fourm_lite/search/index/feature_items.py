"""Region features as a stream of items, as `sources.py` gives photos."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from fourm_lite.embedders.feature_files import pack, unpack
from fourm_lite.embedders.features import Features, FeatureStore
from fourm_lite.errors import FourMError
from fourm_lite.photos.item import Item, Stream, printable


def open_feature_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of every store of features, one after the other; their bytes are an .npz.

    Args:
        paths: folders and files that `FeatureStore.open` takes
        prefix: put before every id, so that two stores with equal ids keep apart

    Raises:
        ConfigError: a path holds no features; said before the first item
    """
    # Absolute, because a row outlives the folder that it was indexed from.
    stores = [FeatureStore.open(Path(path).expanduser().absolute()) for path in paths]
    return (
        Item(prefix + printable(key), printable(store.where(key)), partial(_read, store, key))
        for store in stores
        for key in store
    )


def open_features(data: bytes) -> Features:
    """What an item's bytes hold."""
    return unpack(data)


def _read(store: FeatureStore, key: str) -> bytes:
    try:
        return pack(store[key])
    except FourMError as error:
        # a reader of items skips what cannot be read and says why
        raise OSError(0, str(error)) from error
