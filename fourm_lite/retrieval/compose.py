"""One query from several vectors of a space, by arithmetic on the sphere.

The formula, for vectors x_i with weights w_i and negatives y_j with weights v_j:

    q = unit( sum_i w_i unit(x_i)  -  sum_j v_j unit(y_j) )      unit(x) = x / |x|

Every vector is made unit length first, so how long a network's output is does not matter, and the
sum is made unit length last. Hence the ranking by q is the ranking by
sum_i w_i cos(x_i, z) - sum_j v_j cos(y_j, z): a row gains by every wish and loses by every
negative. Weights are relative; one vector alone gives itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.retrieval.exact import Floats
from fourm_lite.retrieval.vectors import unit_vectors

SMALLEST = 1e-6
"""A sum shorter than this, relative to its weights, has no direction worth searching."""


def compose(
    vectors: Any,
    weights: Sequence[float] | None = None,
    *,
    negatives: Any = None,
    negative_weights: Sequence[float] | None = None,
) -> Floats:
    """The query vector of several wishes, by the formula at the head of this file.

    Shapes:
        vectors: float[N, E], N may be 0 if there are negatives
        weights: N numbers of at least 0, 1 each if not given
        negatives: float[M, E], with their own weights
        returns: float32[E], unit length
    Raises:
        ConfigError: a negative weight, nothing to compose, or wishes that cancel out
        ShapeError: widths or counts differ

    >>> compose([[1.0, 0.0], [0.0, 1.0]], [3, 4]).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    parts = [_signed(vectors, weights, 1.0), _signed(negatives, negative_weights, -1.0)]
    given = [part for part in parts if part is not None]
    if not given:
        raise ConfigError("there is nothing to compose; give at least one vector")
    if len({part[0].shape[1] for part in given}) > 1:
        raise ShapeError(f"vectors and negatives differ in width: {[p[0].shape[1] for p in given]}")
    units = np.concatenate([part[0] for part in given]).astype(np.float64)
    signed = np.concatenate([part[1] for part in given])
    total = signed @ units
    length = float(np.linalg.norm(total))
    if length <= SMALLEST * float(np.abs(signed).sum()):
        raise ConfigError(
            "the weighted vectors cancel out and leave no direction; change a weight or drop one"
        )
    return (total / length).astype(np.float32)


def _signed(
    vectors: Any, weights: Sequence[float] | None, sign: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Unit vectors in double precision with signed weights; ``None`` where there are none."""
    if vectors is None or not len(vectors):
        if weights is not None and len(weights):
            raise ShapeError(f"{len(weights)} weights came without vectors")
        return None
    array = np.asarray(vectors, np.float64)
    array = array[None] if array.ndim == 1 else array
    unit_vectors(array, None, None)  # refuses what has no direction
    units = array / np.linalg.norm(array, axis=1, keepdims=True)
    given = np.ones(len(units)) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (len(units),):
        raise ShapeError(f"{len(units)} vectors came with weights of shape {list(given.shape)}")
    if not np.isfinite(given).all() or (given < 0).any():
        raise ConfigError(
            f"weights are finite and at least 0, got {given.tolist()}; "
            "put what you do not want into negatives"
        )
    return units, sign * given
