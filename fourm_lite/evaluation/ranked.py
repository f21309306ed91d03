"""Measures of ranked lists that are cut after k, as MMT-Retrieval's users report them.

`metrics.py` measures scores of all candidates; here a list says which k candidates came first, and
what is not in it is not found. Average precision is divided by min(k, right answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError


def ranked_measures(
    rankings: Sequence[npt.NDArray[Any]], right: Any, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """recall@k (any right answer among the first k), mrr@k, ndcg@k and map@k for every k.

    Shapes:
        rankings: Q lists of candidate numbers, the best first
        right: bool[Q, G]

    >>> ranked_measures([np.array([2, 0])], [[True, False, False]], ks=(2,))["mrr@2"]
    0.5
    """
    truth = np.asarray(right, bool)
    if len(truth) != len(rankings) or not truth.any(axis=1).all():
        raise ConfigError("every ranking needs a row of right answers, with one at the least")
    hits = [row[order] for row, order in zip(truth, rankings, strict=True)]
    counts = truth.sum(axis=1)
    return {
        f"{name}@{k}": float(
            np.mean([measure(h[:k], n, k) for h, n in zip(hits, counts, strict=True)])
        )
        for k in ks
        for name, measure in MEASURES.items()
    }


def _recall(hits: npt.NDArray[Any], right: int, k: int) -> float:
    return float(hits.any())


def _reciprocal(hits: npt.NDArray[Any], right: int, k: int) -> float:
    return 1.0 / (1 + int(hits.argmax())) if hits.any() else 0.0


def _gain(hits: npt.NDArray[Any], right: int, k: int) -> float:
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    return float((hits * discount[: len(hits)]).sum() / discount[: min(k, right)].sum())


def _precision(hits: npt.NDArray[Any], right: int, k: int) -> float:
    found = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((found * hits).sum() / min(k, right))


MEASURES = {"recall": _recall, "mrr": _reciprocal, "ndcg": _gain, "map": _precision}
