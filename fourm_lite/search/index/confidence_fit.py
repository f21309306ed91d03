"""Fits an index's confidence on queries whose right answers are known, and stores it there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.confidence import (
    Calibration,
    Method,
    auroc,
    calibration_error,
    first_features,
    fit,
)
from fourm_lite.search.index.hits import Hits, Id
from fourm_lite.search.index.index import Index


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """How well the stored confidence tells right from wrong answers.

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

    def to_dict(self) -> dict[str, float]:
        """The fields by name, for JSON."""
        return asdict(self)


def calibrate(
    index: Index,
    vectors: Any,
    right: Sequence[Collection[Id]],
    *,
    method: Method = "logistic",
    names: Sequence[str] = ("score", "margin"),
    more: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    where: str | None = None,
    seed: int = 0,
) -> CalibrationReport:
    """Searches, compares with the truth, fits on half of the queries and stores the map.

    Args:
        index: where to search; its manifest keeps the result
        vectors: float[Q, E], the queries
        right: for every query the ids that are right
        method: ``isotonic`` takes one name, ``logistic`` any number
        names: the features to use, among ``score``, ``margin`` and the names of ``more``
        more: further features float[Q] by name, such as a likelihood or a spread
        threshold: below this probability an answer is "no good match"
        where: a SQL condition for the searches
        seed: draws the held-out half
    """
    hits = index.search_many(vectors, 2, where, columns=[])
    calibration, report = learn(
        hits, right, method=method, names=names, more=more, threshold=threshold, seed=seed
    )
    index.set_calibration(calibration)
    return report


def learn(
    hits: Sequence[Hits],
    right: Sequence[Collection[Id]],
    *,
    method: Method = "logistic",
    names: Sequence[str] = ("score", "margin"),
    more: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    seed: int = 0,
) -> tuple[Calibration, CalibrationReport]:
    """A calibration of answers in any order (by cosine, or reranked), and how well it does.

    The arguments are those of `calibrate`; the report is of a trial fit on half of the answers.
    """
    if len(hits) != len(right):
        raise ShapeError(f"{len(hits)} queries came with {len(right)} sets of right ids")
    if not all(len(one) for one in hits):
        raise ConfigError("the index gave no hits; add rows before calibrating")
    features = _features(hits, names, more or {})
    truth = np.array([one.ids[0] in set(ids) for one, ids in zip(hits, right, strict=True)])
    order = np.random.default_rng(seed).permutation(len(truth))
    seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
    trial = fit({k: v[seen] for k, v in features.items()}, truth[seen], method=method)
    p = trial.p_right({k: v[unseen] for k, v in features.items()})
    scores = np.array([float(one.scores[0]) for one in hits])
    report = CalibrationReport(
        queries=len(truth),
        held_out=len(unseen),
        share_right=float(truth.mean()),
        auroc=auroc(p, truth[unseen]),
        auroc_of_score=auroc(scores[unseen], truth[unseen]),
        error=calibration_error(p, truth[unseen]),
    )
    return fit(features, truth, method=method, threshold=threshold), report


def _features(
    hits: Sequence[Hits], names: Sequence[str], more: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    own = [first_features(one) for one in hits]
    table = {name: np.array([e[name] for e in own]) for name in ("score", "margin")}
    table.update({name: np.asarray(values, np.float64) for name, values in more.items()})
    for name in names:
        if name not in table:
            raise ConfigError(f"there is no feature '{name}'; there is {', '.join(table)}")
    return {name: table[name] for name in [*names, *(n for n in more if n not in names)]}
