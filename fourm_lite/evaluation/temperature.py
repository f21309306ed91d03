"""The temperature of a softmax that makes right answers likeliest, found by bisection."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ShapeError

Floats = npt.NDArray[np.float64]
RANGE = (1e-4, 1e4)
_HALVINGS = 60


def best_temperature(logits: Any, truth: Any) -> float:
    """The T in 1e-4..1e4 for which softmax(logits / T) gives the right classes the least loss.

    The loss is convex in 1 / T. Logits that tell nothing end at the upper bound: all classes equal.

    Shapes:
        logits: float[N, C]; truth: int[N]
    Source:
        On Calibration of Modern Neural Networks (Guo et al. 2017), section 4.2
    """
    scores, right = _checked(logits, truth)
    own = scores[np.arange(len(right)), right]
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        slope = float(((_softmax(scores * middle) * scores).sum(axis=1) - own).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def log_loss(logits: Any, truth: Any) -> float:
    """Mean -log p of the right classes, in nats; log C is a guess.

    Shapes:
        logits: float[N, C]; truth: int[N]
    """
    scores, right = _checked(logits, truth)
    return float(-np.log(_softmax(scores)[np.arange(len(right)), right] + 1e-300).mean())


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _checked(logits: Any, truth: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
    scores, right = np.asarray(logits, np.float64), np.asarray(truth, np.int64)
    if scores.ndim != 2 or right.shape != scores.shape[:1] or not len(right):
        raise ShapeError(
            f"expected logits [N, C] and labels [N], got {scores.shape}, {right.shape}"
        )
    return scores, right
