"""Vectors by the network itself that a target was made of, for galleries of pictures.

The network sees the picture that an item holds and nothing else: where `embed` predicts what the
network would say, this is what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.spec import Modality

PICTURE = "rgb"
"""What a picture is called in an item."""


def teacher_vectors(
    teacher: NetworkEmbedder, pictures: Sequence[Any], target: Modality, width: int
) -> npt.NDArray[np.float32]:
    """The network's vectors float32[N, E] in its own scale, checked against the target's width.

    Raises:
        ShapeError: they are of another width, so of another space
    """
    raw = teacher.embed_image(list(pictures), normalize=False)
    if raw.shape[1] != width:
        raise ShapeError(
            f"'{teacher.name}' gives vectors of width {raw.shape[1]}, the model's target "
            f"'{target.name}' is of width {width}: they are different spaces; give the network "
            "that the target was made of, or name another target"
        )
    return raw


def picture_of(item: Mapping[str, Any], number: int) -> Any:
    """The picture of an item that holds nothing else.

    Raises:
        FourMError: it holds none, or something that the network cannot read
    """
    names = {key.partition("@")[0] for key in item}
    if names != {PICTURE}:
        raise FourMError(
            f"with teacher= an item holds one picture, {{'{PICTURE}': ...}}, item {number} holds "
            f"{sorted(item)}; leave teacher= out to embed any modalities by the model"
        )
    return next(iter(item.values()))
