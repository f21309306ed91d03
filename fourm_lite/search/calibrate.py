"""Learns from queries with known answers how sure an index is, and how it is best reranked.

What is learnt is written into the index's manifest: the probability that the first hit is right,
for the order by cosine and for the reranked order, and the weights of the reranker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.retrieval.calibrate import CalibrationReport, learn
from fourm_lite.retrieval.hits import Hits
from fourm_lite.retrieval.index import Index
from fourm_lite.retrieval.rerank import rerank
from fourm_lite.search.evidence import LIKELIHOOD, SAMPLES, SPREAD, spreads
from fourm_lite.search.likelihood import Likelihood, LikelihoodReranker, codes_of, pictures_of
from fourm_lite.search.spaces import Item, ModelSpace, Space
from fourm_lite.search.weights import (
    CAPTION_DEPTH,
    DEFAULT_WEIGHTS,
    FIT_QUERIES,
    Floats,
    Given,
    fit_cascade,
    model_given,
    model_weights,
)

RERANK, GIVEN_KEY, DEPTH_KEY = "rerank", "rerank_given", "rerank_depth"
RERANKED, SAMPLES_KEY = "rerank_calibration", "spread_samples"
"""Where the manifest's `extra` keeps what was fitted."""
ENCODED = 512
"""Candidates whose encoded side is held at once."""


@dataclass(frozen=True)
class Truth:
    """Queries whose right answers are known.

    Args:
        items: the queries
        right: for each the ids that are right
    """

    items: Sequence[Item]
    right: Sequence[Sequence[Any]]

    def some(self, most: int) -> Truth:
        """At most so many of them, drawn evenly."""
        places = np.linspace(0, len(self.items) - 1, min(len(self.items), most)).astype(int)
        return Truth([self.items[i] for i in places], [self.right[i] for i in places])


@dataclass(frozen=True)
class Calibrated:
    """What was learnt: the confidence by cosine; with reranking its weights and its confidence."""

    report: CalibrationReport
    weights: Mapping[str, float] | None = None
    reranked: CalibrationReport | None = None


def calibrate_index(
    index: Index,
    space: Space,
    truth: Truth,
    *,
    threshold: float = 0.5,
    samples: int = SAMPLES,
    depth: int = 0,
    given: Given = "codes",
) -> Calibrated:
    """Fits and stores the confidence of an index, and with `depth` how its hits are reranked.

    The evidence is the first hit's cosine and its margin to the second; with a 4M model also the
    spread of sampled vectors of the query and, where the model can say the queries' texts, the
    likelihood of the text given the first hit's codes.

    Args:
        index: its manifest keeps the result
        space: embeds the queries
        truth: queries with their answers
        threshold: below this probability an answer is "no good match"
        samples: vectors drawn for the spread; fewer than 2: it is left out
        depth: how many hits are reranked; 0: nothing is learnt about that
        given: what of a hit texts are said from when it is reranked
    """
    vectors = space.embed_items(truth.items)
    more: dict[str, Any] = {}
    if isinstance(space, ModelSpace) and samples > 1:
        more[SPREAD] = spreads(space, truth.items, samples)
    if isinstance(space, ModelSpace) and "codes" in index.info()["columns"]:
        said = _said_of_first(index, space, truth, vectors)
        more |= {} if said is None else {LIKELIHOOD: said}
    hits = index.search_many(vectors, 2, columns=[])
    calibration, report = learn(hits, truth.right, more=more, threshold=threshold)
    extra = {**index.manifest.extra, SAMPLES_KEY: samples}
    done = Calibrated(report)
    if depth:
        found, learnt = _learn_reranking(index, space, truth, (depth, given, samples, threshold))
        done, extra = dataclasses.replace(found, report=report), {**extra, **learnt}
    index.manifest = dataclasses.replace(index.manifest, extra=extra)
    index.set_calibration(calibration)
    return done


def rerank_weights(extra: Mapping[str, Any], space: Space) -> tuple[Mapping[str, float], Given]:
    """The weights and what is given that an index stores, else the model's, else the usual ones."""
    stored = extra.get(RERANK)
    if isinstance(stored, Mapping):
        return dict(stored), extra.get(GIVEN_KEY, "codes")
    own = (model_weights(space) or {}).get("text_to_image", DEFAULT_WEIGHTS)
    return own, model_given(space)


def _said_of_first(
    index: Index, space: ModelSpace, truth: Truth, vectors: Any
) -> npt.NDArray[np.float32] | None:
    """Mean log p(query's text | first hit's codes), float32[Q]; None where a query has no text."""
    likelihood = Likelihood.of(space)
    texts = _texts(likelihood, truth.items)
    if any(text is None for text in texts):
        return None
    hits = index.search_many(vectors, 1, columns=["codes"])
    return _said(likelihood, [t for t in texts if t is not None], hits, "codes")[:, 0]


def _learn_reranking(
    index: Index, space: Space, truth: Truth, how: tuple[int, Given, int, float]
) -> tuple[Calibrated, dict[str, Any]]:
    """Weights for reranking, and the confidence of the order that they give."""
    depth, given, samples, threshold = how
    likelihood = Likelihood.of(space)
    some = truth.some(FIT_QUERIES)
    columns = [n for n in ("codes", "uri") if n in index.columns]
    hits = index.search_many(space.embed_items(some.items), depth, columns=columns)
    weights = _fit(likelihood, some, hits, given)
    reranker = LikelihoodReranker(likelihood, weights, given=given)
    order = [
        rerank(item, one, reranker, depth=depth) for item, one in zip(some.items, hits, strict=True)
    ]
    more: dict[str, Any] = {"cosine": [float(one.columns["cosine"][0]) for one in order]}
    if samples > 1:
        more[SPREAD] = spreads(likelihood.space, some.items, samples)
    calibration, report = learn(order, some.right, more=more, threshold=threshold)
    learnt = {
        RERANK: weights,
        GIVEN_KEY: given,
        DEPTH_KEY: depth,
        RERANKED: calibration.to_dict(),
    }
    return Calibrated(report, weights, report), learnt


def _fit(
    likelihood: Likelihood, truth: Truth, hits: Sequence[Hits], given: Given
) -> dict[str, float]:
    """Weights of a cascade over the hits of each query."""
    cheap = LikelihoodReranker(likelihood)
    rows = [cheap.cheap(item, one) for item, one in zip(truth.items, hits, strict=True)]
    parts = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    right = np.array(
        [[i in set(ids) for i in h.ids] for h, ids in zip(hits, truth.right, strict=True)]
    )
    texts = [t for t in _texts(likelihood, truth.items) if t is not None]

    def say(top: npt.NDArray[np.int64]) -> dict[str, Floats]:
        first = [one.take(row.tolist()) for one, row in zip(hits, top, strict=True)]
        return {"caption": _said(likelihood, texts, first, given)}

    speaks = len(texts) == len(hits)
    return fit_cascade(parts, right, CAPTION_DEPTH, say if speaks else None).weights


def _texts(likelihood: Likelihood, items: Sequence[Item], batch: int = 64) -> list[Tensor | None]:
    read = likelihood.space.pipe.read
    parts = (items[start : start + batch] for start in range(0, len(items), batch))
    return [text for part in parts for text in likelihood.texts(read(part))]


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
