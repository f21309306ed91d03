"""Measures of rankings (R@K, rank, reciprocal rank, nDCG, average precision), with intervals.

The rules, the same everywhere:

- *Several right answers.* R@K, median rank and MRR look at the best-placed right answer: a query
  counts for R@K if any of its right answers is among the first K (the usual rule for five
  captions a photo). nDCG and average precision look at all of them.
- *Ties.* For ranks a tie counts against us: a right answer stands behind every wrong one of equal
  score. An embedding that gives all things the same score therefore finds nothing, instead of
  everything. nDCG and average precision treat equal scores as one group, as scikit-learn does.
- *Queries without a right answer* are an error, never a silent zero.

How far a mean could lie elsewhere with other queries is told by bootstrap intervals. Queries that
belong together (five captions of one photo) are drawn together, else the interval comes out too
narrow.

NumPy only; knows nothing of models or indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], float]

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with the bounds between which ``level`` of the resampled values lie."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def to_list(self) -> list[float]:
        """The bounds, rounded for a report."""
        return [round(self.low, 6), round(self.high, 6)]


def interval(
    values: Any,
    *,
    groups: Any = None,
    statistic: Statistic | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of the mean, or of another statistic, over queries.

    Shapes:
        values: float[Q], one a query
        groups: Q labels; queries of one label are drawn together
    Args:
        values: what was measured
        groups: queries that belong together
        statistic: of drawn values; the mean if not given
        draws: how often the queries are drawn anew
        level: the share of draws between the bounds
        seed: makes the interval repeatable

    Source:
        Efron 1979; Field and Welsh 2007 for drawing clusters
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not len(data):
        raise ShapeError(f"values are [Q] with Q of at least 1, got {list(data.shape)}")
    if not 0 < level < 1 or draws < 1:
        raise ConfigError(f"level is between 0 and 1 and draws at least 1, got {level}, {draws}")
    members = _members(groups, len(data))
    rng = np.random.default_rng(seed)
    drawn = (
        _means(data, members, draws, rng)
        if statistic is None
        else np.array([statistic(data[_draw(members, rng)]) for _ in range(draws)])
    )
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = float(data.mean()) if statistic is None else float(statistic(data))
    return Interval(value, float(low), float(high), level)


def _members(groups: Any, count: int) -> list[npt.NDArray[np.intp]]:
    if groups is None:
        return [np.array([i]) for i in range(count)]
    _, labels = np.unique(np.asarray(groups), return_inverse=True)
    if labels.shape != (count,):
        raise ShapeError(f"groups are one label a value: {count}, got {list(labels.shape)}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _means(
    data: Array, members: list[npt.NDArray[np.intp]], draws: int, rng: np.random.Generator
) -> Array:
    """Means of drawn groups from their sums and sizes; no need to gather the values."""
    sums = np.array([data[m].sum() for m in members])
    sizes = np.array([len(m) for m in members], np.float64)
    means = np.empty(draws)
    for place in range(draws):
        chosen = rng.integers(0, len(members), len(members))
        means[place] = sums[chosen].sum() / sizes[chosen].sum()
    return means


def _draw(members: list[npt.NDArray[np.intp]], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    chosen = rng.integers(0, len(members), len(members))
    return np.concatenate([members[i] for i in chosen])


Relevant = npt.NDArray[np.bool_]
Ranks = npt.NDArray[np.int64]


def first_ranks(scores: Any, relevant: Any) -> Ranks:
    """The rank, from 1, of the best-placed right answer of every query.

    rank = 1 + the number of wrong answers that score at least as much as the best right one.

    Shapes:
        scores: float[Q, G], larger is better; -inf leaves a candidate out
        relevant: bool[Q, G]
        returns: int64[Q]
    Raises:
        ConfigError: a query has no right answer, or a score is not a number

    >>> first_ranks([[0.9, 0.9, 0.1]], [[True, False, False]]).tolist()
    [2]
    """
    table, truth = _checked(scores, relevant)
    best = np.where(truth, table, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((table >= best) & ~truth).sum(axis=1).astype(np.int64)


def recall_at(ranks: Any, k: int) -> Array:
    """1 for every query whose first right answer is among the first k, else 0: float64[Q]."""
    if k < 1:
        raise ConfigError(f"k is at least 1, got {k}")
    return (np.asarray(ranks) <= k).astype(np.float64)


def reciprocal_ranks(ranks: Any) -> Array:
    """1 / rank of every query's first right answer: float64[Q]; their mean is the MRR."""
    return 1.0 / np.asarray(ranks, np.float64)


def average_precisions(scores: Any, relevant: Any) -> Array:
    """Average precision of every query, float64[Q]; the mean is the mAP.

    AP = sum over right answers of (right answers at or above its score) / (answers at or above its
    score), divided by the number of right answers. Equal scores are one group, so the order inside
    a tie does not matter. Equals ``sklearn.metrics.average_precision_score``.

    >>> average_precisions([[3.0, 2.0, 1.0]], [[True, False, True]]).round(4).tolist()
    [0.8333]
    """
    table, truth = _checked(scores, relevant)
    return np.array([_average_precision(s, t) for s, t in zip(table, truth, strict=True)])


def ndcg(scores: Any, gains: Any, k: int | None = None) -> Array:
    """Normalised discounted cumulative gain of every query over its first k answers, float64[Q].

    DCG = sum over places i from 1 to k of gain_i / log2(i + 1), divided by the DCG of the best
    possible order. Answers of equal score share the mean of their gains. Equals
    ``sklearn.metrics.ndcg_score``.

    Shapes:
        scores: float[Q, G]
        gains: float[Q, G] of at least 0; booleans for right and wrong
    """
    values = np.asarray(gains, np.float64)
    if (values < 0).any():
        raise ConfigError(f"gains are at least 0, got {values.min()}")
    table, _ = _checked(scores, values)
    discount = 1.0 / np.log2(np.arange(2, values.shape[1] + 2))
    if k is not None:
        discount[k:] = 0.0
    found = np.array([_gain(s, v, discount) for s, v in zip(table, values, strict=True)])
    return found / (-np.sort(-values, axis=1) @ discount)


def summary(ranks: Any, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """R@K for every K, the median rank and the MRR of a list of ranks.

    >>> summary([1, 3, 20])["median_rank"]
    3.0
    """
    told = {f"R@{k}": float(recall_at(ranks, k).mean()) for k in ks}
    return {
        **told,
        "median_rank": float(np.median(np.asarray(ranks))),
        "MRR": float(reciprocal_ranks(ranks).mean()),
    }


def _checked(scores: Any, relevant: Any) -> tuple[Array, Relevant]:
    table, truth = np.asarray(scores), np.asarray(relevant) > 0
    if table.ndim != 2 or table.shape != truth.shape:
        raise ShapeError(
            f"scores and relevance are both [Q, G], got {list(table.shape)} and {list(truth.shape)}"
        )
    if np.isnan(table).any():
        raise ConfigError("a score is not a number; check the vectors")
    without = np.flatnonzero(~truth.any(axis=1))
    if len(without):
        raise ConfigError(
            f"{len(without)} queries have no right answer, such as query {without[0]}; "
            "leave them out and say so"
        )
    return table, truth


def _groups(scores: Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Order from best to worst, the group of each place, and the size of each group."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    group = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])]).astype(np.intp)
    return order, group, np.bincount(group).astype(np.float64)


def _average_precision(scores: Array, truth: Relevant) -> float:
    order, group, size = _groups(scores)
    right = np.bincount(group, weights=truth[order])
    precision = np.cumsum(right) / np.cumsum(size)
    return float((precision * right).sum() / right.sum())


def _gain(scores: Array, values: Array, discount: Array) -> float:
    order, group, size = _groups(scores)
    mean = np.bincount(group, weights=values[order]) / size
    return float(mean @ np.bincount(group, weights=discount))


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


def _gain_of_hits(hits: npt.NDArray[Any], right: int, k: int) -> float:
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    return float((hits * discount[: len(hits)]).sum() / discount[: min(k, right)].sum())


def _precision(hits: npt.NDArray[Any], right: int, k: int) -> float:
    found = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((found * hits).sum() / min(k, right))


MEASURES = {"recall": _recall, "mrr": _reciprocal, "ndcg": _gain_of_hits, "map": _precision}


def evenly(count: int, most: int | None) -> Ranks:
    """The places of at most `most` of `count` things, drawn evenly; of all for None.

    >>> evenly(5, 3).tolist(), evenly(2, 3).tolist()
    ([0, 2, 4], [0, 1])
    """
    some = count if most is None else min(count, most)
    return np.unique(np.linspace(0, count - 1, some).astype(np.int64))
