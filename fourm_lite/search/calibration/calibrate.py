"""Learns from queries with known answers how sure an index is, and how it is best reranked.

What is learnt is written into the index's manifest: the probability that an answer is relevant
(`captions`), or, from queries with ids alone, that the first hit is one of them; and the weights of
the reranker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics.measures import evenly
from fourm_lite.progress import batches
from fourm_lite.search.calibration.answer_features import DISPERSION, LIKELIHOOD, SAMPLES
from fourm_lite.search.calibration.captions import (
    Captioned,
    Transferable,
    foreign_features,
    foreign_texts,
    lessons_of,
    median_and_deviation,
)
from fourm_lite.search.calibration.probability import (
    Calibration,
    CalibrationReport,
    auroc,
    calibration_error,
    first_features,
    fit,
)
from fourm_lite.search.index.hits import Hits, Id
from fourm_lite.search.index.index import Index
from fourm_lite.search.likelihood_scores import (
    Likelihood,
    LikelihoodReranker,
    codes_of,
    pictures_of,
)
from fourm_lite.search.rerank import rerank
from fourm_lite.search.rerank_weights import (
    CAPTION_DEPTH,
    FIT_QUERIES,
    Choice,
    fit_cascade,
    fitted_choice,
    words_share,
)
from fourm_lite.search.search_file import Given, check_weights
from fourm_lite.search.space import Inputs, Space
from fourm_lite.unit import Floats


def learn(
    hits: Sequence[Hits],
    right: Sequence[Collection[Id]],
    *,
    more: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
) -> tuple[Calibration, CalibrationReport]:
    """A calibration of answers in any order (by cosine, or reranked), and how well it does.

    Args:
        hits: the answers, at least one hit each
        right: for every answer the ids that are right
        more: features float[Q] by name beside score and margin, such as a likelihood
        threshold: below this probability an answer is "no good match"

    Returns:
        the calibration, and the report of a trial fit on half of the answers
    """
    if len(hits) != len(right):
        raise ShapeError(f"{len(hits)} queries came with {len(right)} sets of right ids")
    if not all(len(one) for one in hits):
        raise ConfigError("the index gave no hits; add rows before calibrating")
    own = [first_features(one) for one in hits]
    features = {name: np.array([each[name] for each in own]) for name in ("score", "margin")}
    features |= {name: np.asarray(values, np.float64) for name, values in (more or {}).items()}
    truth = np.array([one.ids[0] in set(ids) for one, ids in zip(hits, right, strict=True)])
    order = np.random.default_rng(0).permutation(len(truth))
    seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
    trial = fit({k: v[seen] for k, v in features.items()}, truth[seen])
    p = trial.p_right({k: v[unseen] for k, v in features.items()})
    report = CalibrationReport(
        queries=len(truth),
        held_out=len(unseen),
        share_right=float(truth.mean()),
        auroc=auroc(p, truth[unseen]),
        auroc_of_score=auroc(features["score"][unseen], truth[unseen]),
        error=calibration_error(p, truth[unseen]),
    )
    return fit(features, truth, threshold=threshold), report


RERANK, GIVEN_KEY, DEPTH_KEY = "rerank", "rerank_given", "rerank_depth"
RERANKED, SAMPLES_KEY, VOCABULARY = "rerank_calibration", "spread_samples", "vocabulary"
OF_MODEL = "confidence_of_model"
"""Where the manifest's `extra` keeps what was fitted."""
ENCODED = 512
"""Candidates whose encoded side is held at once."""


@dataclass(frozen=True)
class Judgements:
    """Queries whose right answers are known.

    Args:
        items: the queries
        right: for each the ids that are right
    """

    items: Sequence[Inputs]
    right: Sequence[Sequence[Any]]

    def some(self, most: int) -> Judgements:
        """At most so many of them, drawn evenly."""
        places = evenly(len(self.items), most)
        return Judgements([self.items[i] for i in places], [self.right[i] for i in places])


@dataclass(frozen=True)
class Calibrated:
    """What was fitted: the confidence; with reranking its weights and how good its order is.

    Units:
        share_reranked: of captions with a relevant hit among the first ones, reranked
    """

    report: CalibrationReport
    weights: Mapping[str, float] | None = None
    reranked: CalibrationReport | None = None
    share_reranked: float | None = None


def calibrate_answers(
    index: Index,
    space: Space,
    captioned: Captioned,
    *,
    foreign: Sequence[str] = (),
    threshold: float = 0.5,
    depth: int = 0,
    given: Given | None = None,
) -> Calibrated:
    """Fits and stores how sure an index is that an answer shows what was asked for.

    With `depth` also how its hits are reranked. The probability is of the first hits by cosine; it
    holds for them in any order.

    Args:
        index: its manifest keeps the result
        space: embeds the questions
        captioned: captions of photos of the index (`evaluate.caption_sets.captioned`)
        foreign: texts of things that the index has not; by default those that ship
        threshold: below this probability an answer is "no good match"
        depth: how many hits are reranked; 0: nothing is learnt about that
        given: what of a hit texts are said from when it is reranked; by default as the model does
    """
    lessons, _ = lessons_of(index, space, captioned, list(foreign) or foreign_texts())
    done = Calibrated(lessons.report(threshold))
    dropped = (RERANKED, OF_MODEL, *((RERANK, GIVEN_KEY, DEPTH_KEY) if depth else ()))
    extra = {n: v for n, v in index.manifest.extra.items() if n not in dropped}
    extra[VOCABULARY] = captioned.vocabulary.to_dict()
    if depth:
        judged = Judgements([q.item for q in captioned.questions], [[i] for i in captioned.owner])
        usual = fitted_choice(space.fitted, given).given
        weights, order, some = _reranked(index, space, judged, depth, usual)
        extra |= {RERANK: weights, GIVEN_KEY: usual, DEPTH_KEY: depth}
        asked = captioned.some(len(some.items))
        done = dataclasses.replace(done, weights=weights, share_reranked=asked.share(order))
    fitted = lessons.fit(np.ones(len(lessons.right), bool), threshold)
    index.set_calibration(fitted, extra=extra)
    return done


def calibrate_by_model(index: Index, space: Space, *, threshold: float = 0.5) -> Calibration:
    """Stores the confidence that is kept beside the model, fitted to a gallery without captions.

    Answers to one or two words get none by it: on photos of another kind than the model's it would
    be sure of wrong ones.

    Raises:
        ConfigError: none is kept beside this model
    """
    fitted = space.fitted
    if fitted is None or fitted.calibration is None:
        raise ConfigError(
            "no confidence is kept beside this model; calibrate with captions of photos of the "
            "index (--data FOLDER), or fit the model's own first (fourm-lite calibrate)"
        )
    kept = Transferable.of(fitted.calibration)
    moved = kept.moved_to(median_and_deviation(foreign_features(index, space, foreign_texts())))
    moved = dataclasses.replace(moved, threshold=threshold)
    extra = {n: v for n, v in index.manifest.extra.items() if n != RERANKED}
    extra |= {VOCABULARY: kept.vocabulary.to_dict(), OF_MODEL: True}
    index.set_calibration(moved, extra=extra)
    return moved


def calibrate_index(
    index: Index,
    space: Space,
    judged: Judgements,
    *,
    threshold: float = 0.5,
    samples: int = SAMPLES,
    depth: int = 0,
    given: Given | None = None,
) -> Calibrated:
    """Fits and stores how sure an index is that the first hit is one of the ids named as right.

    With `depth` also how its hits are reranked. For queries in words of which captions are known,
    see `calibrate_answers`.

    The features are the first hit's cosine and its margin to the second; with a 4M model also the
    dispersion of sampled vectors of the query and, where the model can say the queries' texts, the
    likelihood of the text given the first hit's codes.

    Args:
        index: its manifest keeps the result
        space: embeds the queries
        judged: queries with their answers
        threshold: below this probability an answer is "no good match"
        samples: vectors drawn for the dispersion; fewer than 2: it is left out
        depth: how many hits are reranked; 0: nothing is learnt about that
        given: what of a hit texts are said from when it is reranked; by default as the model does
    """
    vectors = space.encode_query(judged.items)
    more: dict[str, Any] = {}
    if (drawn := space.dispersion(judged.items, samples)) is not None:
        more[DISPERSION] = drawn
    if space.predictor is not None and "codes" in index.info()["columns"]:
        said = _said_of_first(index, space, judged, vectors)
        more |= {} if said is None else {LIKELIHOOD: said}
    hits = index.search_many(vectors, 2, columns=[])
    calibration, report = learn(hits, judged.right, more=more, threshold=threshold)
    extra = {**index.manifest.extra, SAMPLES_KEY: samples}
    done = Calibrated(report)
    if depth:
        usual = fitted_choice(space.fitted, given).given
        found, stored = _learn_reranking(index, space, judged, (depth, usual, samples, threshold))
        done, extra = dataclasses.replace(found, report=report), {**extra, **stored}
    index.set_calibration(calibration, extra=extra)
    return done


def rerank_choice(extra: Mapping[str, Any], space: Space, given: Given | None = None) -> Choice:
    """How an index is reranked: as it stores, else as is kept beside the model, else by cosine.

    Weights belong to what words are said from, so others than the stored ones may serve `given`.
    """
    stored, usual = extra.get(RERANK), extra.get(GIVEN_KEY, "codes")
    if isinstance(stored, Mapping) and given in (None, usual):
        return Choice(check_weights(stored), usual, "the index")
    return fitted_choice(space.fitted, given)


def _said_of_first(
    index: Index, space: Space, judged: Judgements, vectors: Any
) -> npt.NDArray[np.float32] | None:
    """Mean log p(query's text | first hit's codes), float32[Q]; None where a query has no text."""
    likelihood = Likelihood.of(space)
    texts = _texts(likelihood, judged.items)
    if any(text is None for text in texts):
        return None
    hits = index.search_many(vectors, 1, columns=["codes"])
    return _said(likelihood, [t for t in texts if t is not None], hits, "codes")[:, 0]


def _learn_reranking(
    index: Index, space: Space, judged: Judgements, options: tuple[int, Given, int, float]
) -> tuple[Calibrated, dict[str, Any]]:
    """Weights for reranking, and the confidence of the order that they give."""
    depth, given, samples, threshold = options
    weights, order, some = _reranked(index, space, judged, depth, given)
    more: dict[str, Any] = {"cosine": [float(one.columns["cosine"][0]) for one in order]}
    if (drawn := space.dispersion(some.items, samples)) is not None:
        more[DISPERSION] = drawn
    calibration, report = learn(order, some.right, more=more, threshold=threshold)
    stored = {
        RERANK: weights,
        GIVEN_KEY: given,
        DEPTH_KEY: depth,
        RERANKED: calibration.to_dict(),
    }
    return Calibrated(report, weights, report), stored


def _reranked(
    index: Index, space: Space, judged: Judgements, depth: int, given: Given
) -> tuple[dict[str, float], list[Hits], Judgements]:
    """Weights for reranking, and the order that they give to the hits of some queries."""
    likelihood = Likelihood.of(space)
    some = judged.some(FIT_QUERIES)
    columns = [n for n in ("codes", "uri") if n in index.columns]
    hits = index.search_many(space.encode_query(some.items), depth, columns=columns)
    weights = _fit(likelihood, some, hits, given)
    reranker = LikelihoodReranker(likelihood, weights, given=given)
    order = [
        rerank(item, one, reranker, depth=depth) for item, one in zip(some.items, hits, strict=True)
    ]
    return weights, order, some


def _fit(
    likelihood: Likelihood, judged: Judgements, hits: Sequence[Hits], given: Given
) -> dict[str, float]:
    """Weights of a cascade over the hits of each query."""
    cheap = LikelihoodReranker(likelihood)
    rows = [cheap.cheap(item, one) for item, one in zip(judged.items, hits, strict=True)]
    parts = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    right = np.array(
        [[i in set(ids) for i in h.ids] for h, ids in zip(hits, judged.right, strict=True)]
    )
    texts = [t for t in _texts(likelihood, judged.items) if t is not None]

    def say(top: npt.NDArray[np.int64]) -> dict[str, Floats]:
        first = [one.take(row.tolist()) for one, row in zip(hits, top, strict=True)]
        return {"caption": words_share(texts)[:, None] * _said(likelihood, texts, first, given)}

    speaks = len(texts) == len(hits)
    return fit_cascade(parts, right, CAPTION_DEPTH, say if speaks else None).weights


def _texts(likelihood: Likelihood, items: Sequence[Inputs], batch: int = 64) -> list[Tensor | None]:
    read = likelihood.space.pipe.read
    return [t for part in batches(items, batch) for t in likelihood.texts(read(part))]


def _said(
    likelihood: Likelihood, texts: Sequence[Tensor], hits: Sequence[Hits], given: Given
) -> Floats:
    """Mean log p(text | hit) of each query's hits, float32[Q, K]; each hit is encoded once."""
    place: dict[Any, int] = {}
    first: list[tuple[int, int]] = []
    for number, one in enumerate(hits):
        for at, name in enumerate(one.ids):
            if name not in place:
                place[name] = len(place)
                first.append((number, at))
    asked = np.array([[place[name] for name in one.ids] for one in hits])
    out = np.empty(asked.shape, np.float32)
    for start in range(0, len(first), ENCODED):
        part = first[start : start + ENCODED]
        known = Hits.joined([hits[number].take([at]) for number, at in part])
        pictures = None if given == "codes" else pictures_of(known)
        ready = likelihood.candidates(codes_of(known), pictures, given=given)
        rows, columns = np.nonzero((asked >= start) & (asked < start + len(part)))
        pairs = np.stack([rows, asked[rows, columns] - start], axis=1)
        out[rows, columns] = likelihood.text_scores(texts, ready, pairs)
    return out
