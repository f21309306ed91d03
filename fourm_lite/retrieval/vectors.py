"""Vectors at the door of an index: their shape, and that each has a finite direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.retrieval.exact import Floats

UNIT_TOLERANCE = 1e-5


def unit_vectors(vectors: Any, count: int | None, width: int | None) -> Floats:
    """The vectors as float32[N, E] of unit length; those that are so already keep their bits.

    Raises:
        ShapeError: not [N, E], or another width than the index
        ConfigError: a vector is not finite, or zero and so without a direction
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ShapeError(f"vectors are numbers [N, E], got {array.dtype}{list(array.shape)}")
    if count is not None and len(array) != count:
        raise ShapeError(f"{count} ids came with {len(array)} vectors; give one vector an id")
    if width is not None and array.shape[1] != width:
        raise ShapeError(
            f"the index holds vectors of width {width}, got width {array.shape[1]}; "
            "embed with the model that made the index"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    norms = _norms(array)
    _check_norms(norms, array)
    off = np.abs(norms - 1) > UNIT_TOLERANCE
    if off.any():
        divisor = np.where(off, norms, 1.0)[:, None]
        # Vectors near the ends of float32 need the wider division; it costs time, so only they.
        tame = norms[off].min() > 1e-30
        array = array / (divisor.astype(np.float32) if tame else divisor)
    return array.astype(np.float32, copy=False)


def _norms(array: Floats) -> npt.NDArray[np.float64]:
    """Lengths, in double precision where the squares leave the range of float32."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.einsum("ne,ne->n", array, array).astype(np.float64)
    odd = ~((squares > 1e-30) & (squares < 1e30))
    if odd.any():
        with np.errstate(invalid="ignore"):
            squares[odd] = (array[odd].astype(np.float64) ** 2).sum(axis=1)
    return np.sqrt(squares)


def _check_norms(norms: npt.NDArray[np.float64], array: Floats) -> None:
    finite = np.isfinite(norms)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        bad = array[row][~np.isfinite(array[row])]
        what = str(bad[0]) if len(bad) else "a value too large"
        raise ConfigError(
            f"vector {row} is not finite (it holds {what}); {int((~finite).sum())} of "
            f"{len(norms)} are so: check the model's input or its precision"
        )
    if len(norms) and not norms.all():
        row = int(np.flatnonzero(norms == 0)[0])
        raise ConfigError(f"vector {row} is zero and has no direction; leave that item out")
