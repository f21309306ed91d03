"""Vectors of length 1, the one place for numpy; torch has its own `functional.normalize`.

Lengths are taken in double precision, whatever the vectors are in: a sum of a thousand squares in
single precision moves the last digits, and an index of the same photos would not be the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def lengths(vectors: Any) -> Doubles:
    """Lengths along the last axis, which stays with size 1."""
    made: Doubles = np.linalg.norm(np.asarray(vectors, np.float64), axis=-1, keepdims=True)
    return made


def unit_doubles(vectors: Any) -> Doubles:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    found = lengths(vectors)
    made: Doubles = np.asarray(vectors) / np.where(found == 0, 1.0, found)
    return made


def unit(vectors: Any) -> Floats:
    """The same in single precision, as vectors are stored and compared."""
    return unit_doubles(vectors).astype(np.float32)
