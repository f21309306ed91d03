"""Retrieve with vectors, rerank with a cross-encoder: over ids of pictures, best first.

What MMT-Retrieval's users call ImageTextRetrieval and its evaluators. (The original's list begins
with the worst; ours with the best.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import NetworkEmbedder, Vectors
from fourm_lite.embedders.pairs import PairReranker
from fourm_lite.errors import ConfigError
from fourm_lite.metrics.measures import ranked_measures

Scoring = Literal["logit", "combination"]
Ints = npt.NDArray[np.int64]
ScorePairs = Callable[[Ints, Ints], Vectors]
"""Numbers of texts and of pictures, as pairs -> scores, larger is better."""
CROSS = -1
"""As `retrieve`: every pair is scored by the cross-encoder."""


class RetrieveRerank:
    """Search over a fixed list of pictures, embedded once."""

    def __init__(
        self,
        dual: NetworkEmbedder,
        cross: PairReranker,
        pictures: Sequence[Any],
        *,
        batch_size: int = 32,
    ) -> None:
        """`pictures` are what both networks read: ids of a feature store, or photos."""
        self.dual, self.cross, self.pictures = dual, cross, list(pictures)
        self.batch_size = batch_size
        self._vectors = dual.embed_image(self.pictures, batch_size)

    def __call__(self, text: str, *, k: int = 10, retrieve: int = 100) -> list[tuple[Any, float]]:
        """The k best pictures for a text with their scores, out of the `retrieve` nearest.

        Raises:
            ConfigError: k or retrieve is below 1
        """
        if min(k, retrieve) < 1:
            raise ConfigError(f"k and retrieve are at least 1, got {k} and {retrieve}")
        cosines = (self.dual.embed_text([text]) @ self._vectors.T)[0]
        near = np.argsort(-cosines, kind="stable")[: max(k, retrieve)]
        return self.cross.rank(
            text,
            [self.pictures[i] for i in near],
            ids=[self.pictures[i] for i in near],
            k=k,
            batch_size=self.batch_size,
        )


def caption_measures(
    dual: NetworkEmbedder,
    cross: PairReranker | None,
    pictures: Sequence[Any],
    captions: Sequence[str],
    owner: Sequence[int],
    *,
    retrieve: int = 0,
    scoring: Scoring = "logit",
    share: float = 0.0,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 32,
) -> dict[str, Any]:
    """Both directions as MMT-Retrieval measures them, with mR, the mean recall of all.

    Args:
        dual: gives vectors
        cross: scores pairs; not needed for retrieve=0
        pictures: ids or photos
        captions: all captions
        owner: the number of each caption's picture
        retrieve: so many of the nearest are reranked; 0: none, `CROSS`: all pairs are scored
        scoring: "combination" mixes the probability of a match with the cosine
        share: of the cosine in it
        ks: of the measures; at least the largest is retrieved
        batch_size: items and pairs in one pass
    Raises:
        ConfigError: an unknown scoring, or a reranking without a cross-encoder
    """
    if scoring not in ("logit", "combination"):
        raise ConfigError(f"scoring is logit or combination, got '{scoring}'")
    if retrieve and cross is None:
        raise ConfigError("reranking needs a cross-encoder; give one, or retrieve=0")
    cosines = dual.embed_text(captions, batch_size) @ dual.embed_image(pictures, batch_size).T

    def judge(texts: Ints, images: Ints) -> Vectors:
        assert cross is not None
        read = [captions[t] for t in texts], [pictures[i] for i in images]
        if scoring == "logit":
            return cross.score(*read, batch_size)
        mixed = (1 - share) * cross.probabilities(*read, batch_size)
        return np.asarray(mixed + share * cosines[texts, images], np.float32)

    right = np.asarray(owner)[:, None] == np.arange(len(pictures))
    depth = max(retrieve, *ks) if retrieve > 0 else retrieve
    forward = _rankings(cosines, judge, depth)
    back = _rankings(cosines.T, lambda images, texts: judge(texts, images), depth)
    found: dict[str, Any] = {
        "text_to_image": ranked_measures(forward, right, ks),
        "image_to_text": ranked_measures(back, right.T, ks),
    }
    recalls = [side[f"recall@{k}"] for side in found.values() for k in ks]
    return {**found, "mR": float(np.mean(recalls))}


def _rankings(cosines: Vectors, judge: ScorePairs, depth: int) -> list[Ints]:
    """Candidates of every query, the best first."""
    found = []
    for query, row in enumerate(cosines):
        near = np.arange(len(row)) if depth == CROSS else np.argsort(-row, kind="stable")
        near = near[:depth] if depth > 0 else near
        if depth != 0:
            scores = judge(np.full(len(near), query), near)
            near = near[np.argsort(-scores, kind="stable")]
        found.append(near)
    return found
