"""What is taken off vectors before cosines are formed.

Vectors of one network share a large common part: a plain cosine then mostly compares that part. A
*centred* cosine compares what is left when the mean is taken off both sides,
cos(a - m, b - m). The mean is, in this order: the tokenizer's own (`mean` in its config: the mean
of the raw vectors that it was trained on, so nothing of the gallery is looked at), else the mean of
the gallery. A gallery of unit vectors that belongs to raw ones is centred among unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ShapeError

Floats = npt.NDArray[np.float32]
Source = Literal["tokenizer", "gallery", "none"]

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Centre:
    """How raw vectors become the unit vectors that are compared.

    Shapes:
        mean: float32[E], or None where nothing is taken off
    Units:
        source: where the mean comes from
        unit_first: vectors are made unit length before the mean is taken off
    """

    mean: Floats | None = None
    source: Source = "none"
    unit_first: bool = False

    def __call__(self, raw: Floats) -> Floats:
        """Unit vectors of raw ones; float32[..., E] -> float32[..., E]."""
        x = np.asarray(raw, np.float32)
        if self.mean is None:
            return unit(x)
        if x.shape[-1] != len(self.mean):
            raise ShapeError(
                f"the centre has width {len(self.mean)}, the vectors {x.shape[-1]}; they are of "
                "different networks"
            )
        return unit((unit(x) if self.unit_first else x) - self.mean)


def gallery_centre(raw: Floats) -> Centre:
    """The centre of a gallery's own mean.

    Shapes:
        raw: float32[G, E]
    """
    if has_unit_length(raw):
        return Centre(unit(raw).mean(axis=0, dtype=np.float64).astype(np.float32), "gallery", True)
    return Centre(raw.mean(axis=0, dtype=np.float64).astype(np.float32), "gallery")


def has_unit_length(raw: Floats) -> bool:
    """Whether all vectors are of length 1, up to rounding."""
    norms = np.linalg.norm(raw.astype(np.float64), axis=-1)
    return bool(np.all(np.abs(norms - 1) < UNIT_TOLERANCE))


def unit(x: Floats) -> Floats:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    norms = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return (x / np.maximum(norms, 1e-12)).astype(np.float32)
