"""How far a mean could lie elsewhere with other queries: bootstrap intervals.

Queries that belong together (five captions of one photo) are drawn together, else the interval
comes out too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
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
