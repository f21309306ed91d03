"""A picture as a joint encoder reads it: the features of its regions and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourm_lite.embedders.features import Features, FeatureStore
from fourm_lite.embedders.mmt.network import JointBatch
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.families.joint import Geometry

# of x1, y1, x2, y2 in parts of the picture's size
NUMBERS: dict[Geometry, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "x1": lambda box: box[:, 0],
    "y1": lambda box: box[:, 1],
    "x2": lambda box: box[:, 2],
    "y2": lambda box: box[:, 3],
    "w": lambda box: box[:, 2] - box[:, 0],
    "h": lambda box: box[:, 3] - box[:, 1],
    "area": lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
}


@dataclass(frozen=True)
class Regions:
    """Regions of one picture: features float32[R, F] and geometry float32[R, G]."""

    features: Tensor
    geometry: Tensor


@dataclass(frozen=True)
class RegionReader:
    """Turns ids, features or dictionaries of MMT-Retrieval into regions.

    Args:
        numbers: the geometry of the family
        width: of the features that the network was trained on
        limit: how many regions count, the first ones
        store: where ids are looked up
    """

    numbers: tuple[Geometry, ...]
    width: int
    limit: int
    store: FeatureStore | None = None

    def __call__(self, picture: Any) -> Regions:
        """The regions of an id of the store, of `Features`, or of a dictionary.

        Raises:
            ConfigError: something else, an id without a store, or no boxes
            ShapeError: features of another width
        """
        if isinstance(picture, Regions):
            return picture
        item, name = self._features(picture)
        if item.features.shape[1] != self.width:
            raise ShapeError(
                f"this network reads region features of width {self.width}, {name} has "
                f"{item.features.shape[1]}; extract them with the detector that it was trained on"
            )
        if item.boxes is None or item.size is None or not len(item.features):
            raise ConfigError(
                f"this network reads where regions lie, and {name} has no boxes or no size of its "
                "picture; extract features with boxes"
            )
        height, width = item.size
        scale = np.array([width, height, width, height], np.float64)
        boxes = item.boxes[: self.limit].astype(np.float64) / scale
        geometry = np.stack([NUMBERS[n](boxes) for n in self.numbers], axis=1)
        return Regions(
            torch.from_numpy(np.ascontiguousarray(item.features[: self.limit])),
            torch.from_numpy(geometry.astype(np.float32)),
        )

    def _features(self, picture: Any) -> tuple[Features, str]:
        if isinstance(picture, Features):
            return picture, "this picture"
        if isinstance(picture, Mapping):
            return _of_dictionary(picture), "this picture"
        if not isinstance(picture, str | int) or isinstance(picture, bool):
            raise ConfigError(
                "a network of words and regions reads pictures by the id of their features (or as "
                f"Features), got {type(picture).__name__}; photos need a detector first"
            )
        if self.store is None:
            raise ConfigError(
                f"the id {picture!r} cannot be looked up: give features=STORE, a FeatureStore or "
                "the path of one, when the network is loaded"
            )
        # a photo "1000.jpg" has its regions in "1000.npz"
        names = (str(picture), Path(str(picture)).stem)
        name = next((n for n in names if n in self.store), names[0])
        return self.store[name], f"'{picture}'"


def _of_dictionary(item: Mapping[str, Any]) -> Features:
    if missing := [name for name in ("features", "boxes", "img_w", "img_h") if name not in item]:
        raise ConfigError(f"a picture's dictionary needs {missing}, it has {sorted(item)}")
    features, boxes = (np.asarray(item[name], np.float32) for name in ("features", "boxes"))
    return Features(features, boxes, (float(item["img_h"]), float(item["img_w"])))


def join_batch(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]], pictures: Sequence[Regions | None]
) -> JointBatch:
    """Texts (ids and types) and pictures by position, padded to one batch."""
    ids, words = _padded([torch.tensor(ids, dtype=torch.long) for ids, _ in texts])
    types, _ = _padded([torch.tensor(types, dtype=torch.long) for _, types in texts])
    some = next((p for p in pictures if p is not None), None)
    widths = (0, 0) if some is None else (some.features.shape[1], some.geometry.shape[1])
    empty = Regions(torch.zeros(0, widths[0]), torch.zeros(0, widths[1]))
    found = [empty if p is None else p for p in pictures]
    features, regions = _padded([p.features for p in found])
    geometry, _ = _padded([p.geometry for p in found])
    return JointBatch(ids, types, words, features, geometry, regions)


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[B, L, ...] with zeros behind each row, and bool[B, L], True where a row is."""
    lengths = torch.tensor([len(row) for row in rows])
    valid = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), valid
