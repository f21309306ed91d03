"""From what is measured of an answer to the probability that it is right.

What "right" means, the calibration says: that the first hit is one of the ids that were named for
the query, or that one of the first ten hits shows what was asked for (`RELEVANCE`), whichever
photos they are. A query of one or two words gets none of the latter (`SHORT`).

A cosine of 0.3 means nothing by itself. A calibration is fitted on queries whose right answers are
known, and turns the features of an answer (its best score, the margin to the second, and whatever
else the caller measured, such as a likelihood) into ``p_right``. It is plain numbers, stored in the
index. A feature is larger where the answer is better, except for names in ``FALLING``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.io.recipe import from_dict
from fourm_lite.search.index.hits import Hits

Method = Literal["isotonic", "logistic"]
Array = npt.NDArray[np.float64]

FALLING = frozenset({"spread"})
"""Features that are smaller where the answer is better."""

FIRST_HIT, RELEVANCE = "first hit", "relevance"
MEANINGS = {
    FIRST_HIT: "that the first hit is right",
    RELEVANCE: "that one of the first ten hits shows what was asked for",
    "": "that the first hit is the very photo of a caption; calibrated by an earlier version",
}
"""What a probability is of, in words."""
SHORT = "short query"
"""What `p_means` is where none is given because the query has one or two words."""
NONE_FOR_SHORT = (
    "no probability: for a query of one or two words it would not hold; write a sentence"
)

RIDGE = 1e-3
NEWTON_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted map from features to the probability that an answer is right.

    Units:
        ``names`` are the features it reads. logistic: p = 1 / (1 + exp(-(bias + sum of weights *
        (features - centres) / scales))). isotonic, as indexes of earlier versions hold it: one
        feature, p is interpolated between the points (xs, ys). Below ``threshold`` an answer is no
        good match. ``meaning`` is one of ``MEANINGS``; those that were stored before there were
        several have none
    """

    method: Method
    names: tuple[str, ...]
    threshold: float = 0.5
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    centres: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()
    queries: int = 0
    meaning: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Calibration | None:
        """The calibration that ``to_dict`` wrote; ``None`` stays ``None``."""
        if stored is None:
            return None
        try:
            return from_dict(cls, stored)
        except ConfigError as error:
            raise ConfigError(
                f"the stored calibration is damaged: {error}; calibrate again"
            ) from error

    def __post_init__(self) -> None:
        """Refuses numbers that do not belong together."""
        if self.method == "logistic":
            lengths = {len(x) for x in (self.names, self.weights, self.centres, self.scales)}
            fits = len(lengths) == 1 and all(self.scales)
        else:
            fits = len(self.names) == 1 and len(self.xs) == len(self.ys) > 0
        if not fits:
            raise ConfigError(f"the numbers of a {self.method} calibration do not fit its features")

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        plain = dataclasses.asdict(self)
        return {k: _listed(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def p_right(self, features: Mapping[str, Any]) -> Array:
        """The probability float64[Q] that each answer is right.

        Raises:
            ConfigError: a feature that the calibration reads is absent
        """
        table = _table(features, self.names)
        if self.method == "logistic":
            z = (table - np.array(self.centres)) / np.array(self.scales)
            return _sigmoid(z @ np.array(self.weights) + self.bias)
        return np.interp(table[:, 0], self.xs, self.ys)


def _listed(values: tuple[Any, ...]) -> list[Any]:
    return [value.item() if isinstance(value, np.generic) else value for value in values]


@dataclass(frozen=True)
class CalibrationReport:
    """How well the stored confidence separates right from wrong answers.

    Units:
        AUROC of the calibrated probability and of the bare score; ``error`` is the mean gap
        between told and true shares. All on held-out queries, that the fit has not seen
    """

    queries: int
    held_out: int
    share_right: float
    auroc: float
    auroc_of_score: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return dataclasses.asdict(self)


def fit(
    features: Mapping[str, Any],
    right: Any,
    *,
    threshold: float = 0.5,
    counts: Any = None,
    meaning: str = FIRST_HIT,
) -> Calibration:
    """Fits a logistic calibration to answers whose rightness is known.

    Shapes:
        features: float[Q] by name
        right: bool[Q]
        counts: float[Q], how much each answer counts; all alike if not given
    Raises:
        ConfigError: all answers are right or all are wrong
    """
    names = tuple(features)
    truth = np.asarray(right, dtype=bool)
    table = _table(features, names)
    if len(table) != len(truth):
        raise ShapeError(f"{len(table)} answers came with {len(truth)} verdicts")
    if truth.all() or not truth.any():
        raise ConfigError(
            f"a calibration learns from right and wrong answers, all {len(truth)} are "
            f"{'right' if truth.all() else 'wrong'}; give harder or easier queries"
        )
    mass = np.ones(len(truth)) if counts is None else np.asarray(counts, np.float64)
    shared = {"names": names, "threshold": threshold, "queries": len(truth), "meaning": meaning}
    return _fit_logistic(table, truth, mass * len(mass) / mass.sum(), shared)


def first_features(hits: Hits) -> dict[str, float]:
    """What an answer shows by itself: ``score`` of the first hit, ``margin`` to the second."""
    scores = [float(s) for s in hits.scores[:2]]
    if not scores:
        return {}
    return {"score": scores[0], "margin": scores[0] - scores[1] if len(scores) > 1 else scores[0]}


def with_confidence(hits: Hits, calibration: Calibration | None, **more: float) -> Hits:
    """The hits with ``p_right`` and ``good_match``.

    They stay unknown where there is no calibration, or where it reads a feature (such as a
    likelihood) that is neither in the hits nor in ``more``. No hits are no good match.
    """
    if calibration is None:
        return hits
    if not len(hits):
        return dataclasses.replace(hits, p_right=0.0, good_match=False, p_means=calibration.meaning)
    features = {**first_features(hits), **more}
    if not set(calibration.names) <= set(features):
        return hits
    p = float(calibration.p_right({k: [v] for k, v in features.items()})[0])
    good = p >= calibration.threshold
    return dataclasses.replace(hits, p_right=p, good_match=good, p_means=calibration.meaning)


def sureness(hits: Hits) -> str:
    """How sure an answer is, in words; nothing where it is not known."""
    if hits.p_right is None:
        return NONE_FOR_SHORT if hits.p_means == SHORT else ""
    meaning = MEANINGS.get(FIRST_HIT if hits.p_means is None else hits.p_means, "of a right answer")
    told = f"probability {meaning}: {hits.p_right:.2f}"
    return f"no good match ({told})" if hits.good_match is False else told


def auroc(scores: Any, right: Any) -> float:
    """The chance that a right answer scores above a wrong one; a tie counts one half.

    Source:
        Mann and Whitney 1947, by mean ranks
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(right, bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise ConfigError("AUROC needs right and wrong answers, there is only one kind")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean_rank = last - (count - 1) / 2  # ranks from 1
    total = mean_rank[place][truth].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(p: Any, right: Any, *, bins: int = 10, counts: Any = None) -> float:
    """The mean gap between the predicted probability and the share that is right, over equal bins.

    Answers count alike, or as `counts` says.
    """
    told, truth = np.asarray(p, np.float64), np.asarray(right, np.float64)
    mass = np.ones(len(told)) if counts is None else np.asarray(counts, np.float64)
    place = np.minimum((told * bins).astype(int), bins - 1)
    gaps = np.bincount(place, mass * (told - truth), minlength=bins)
    return float(np.abs(gaps).sum() / mass.sum())


def _fit_logistic(
    table: Array, truth: npt.NDArray[np.bool_], mass: Array, shared: Any
) -> Calibration:
    """A logistic regression in which a better feature never lowers the probability.

    A feature whose weight would have the wrong sign says nothing beside the others: it gets none.
    """
    centres, scales = table.mean(0), table.std(0)
    scales = np.where(scales > 0, scales, 1.0)
    signs = np.array([-1.0 if name in FALLING else 1.0 for name in shared["names"]])
    used = np.ones(len(signs), bool)
    weights, bias = np.zeros(len(signs)), 0.0
    while True:
        weights = np.zeros(len(signs))
        weights[used], bias = _newton(((table - centres) / scales)[:, used], truth, mass)
        if (signs * weights >= 0).all():
            break
        used[int((signs * weights).argmin())] = False
    return Calibration(
        method="logistic",
        weights=tuple(map(float, weights)),
        bias=bias,
        centres=tuple(map(float, centres)),
        scales=tuple(map(float, scales)),
        **shared,
    )


def _newton(table: Array, truth: npt.NDArray[np.bool_], mass: Array) -> tuple[Array, float]:
    """Weights and bias by Newton's method with a small ridge; separable answers stay finite."""
    x = np.column_stack([table, np.ones(len(table))])
    y = truth.astype(np.float64)
    ridge = np.diag([RIDGE * len(y)] * table.shape[1] + [0.0])
    weights = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (mass * (p - y)) + ridge @ weights
        curvature = (x * (mass * p * (1 - p) + 1e-9)[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, gradient)
        weights -= np.clip(step, -4.0, 4.0)
        if np.abs(step).max() < 1e-10:
            break
    return weights[:-1], float(weights[-1])


def _table(features: Mapping[str, Any], names: tuple[str, ...]) -> Array:
    absent = [name for name in names if name not in features]
    if absent or not names:
        raise ConfigError(
            f"the calibration reads {', '.join(names) or 'nothing'}; absent: {', '.join(absent)}"
        )
    columns = [np.asarray(features[name], np.float64).reshape(-1) for name in names]
    if len({len(c) for c in columns}) > 1:
        raise ShapeError(f"features differ in length: {[len(c) for c in columns]}")
    table = np.column_stack(columns)
    if not np.isfinite(table).all():
        raise ConfigError("features are not finite; leave out queries without an answer")
    return table


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))
