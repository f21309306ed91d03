"""A second, slower look at the first hits: what a reranker is, and how its scores are used.

Retrieve fast, rerank smart (MMT-Retrieval, Geigle et al. 2022). A reranker scores the first hits
of one query; they are put in its order, and the hits behind them keep theirs. What
MMT-Retrieval's users call ImageTextRetrieval and its evaluators is `RetrieveRerank` and
`caption_measures`. (The original's list begins with the worst; ours with the best.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import NetworkEmbedder, Reads, Vectors
from fourm_lite.embedders.features import read_place
from fourm_lite.embedders.rerankers import Ints, PairReranker, ScorePairs, load_reranker
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics.measures import ranked_measures
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood_scores import pictures_of
from fourm_lite.search.search_file import UnseenError
from fourm_lite.search.space import TEXT, Inputs
from fourm_lite.unit import Floats

log = logging.getLogger(__name__)


class Reranker(Protocol):
    """Scores candidates of one query."""

    def __call__(self, query: Any, candidates: Hits) -> npt.NDArray[np.float32]:
        """One score a candidate, float32[K]; larger is better.

        Raises:
            UnseenError: some candidates cannot be looked at; it is called again without them
        """
        ...


def rerank(query: Any, hits: Hits, reranker: Reranker, *, depth: int = 100) -> Hits:
    """The hits with the first ``depth`` in the reranker's order.

    The cosines move to the column ``cosine``; ``scores`` are the reranker's, and not a number
    behind ``depth``. Of equal scores the hit that stood earlier comes first. A hit that the
    reranker cannot look at keeps its place, without a score, and the log tells of it.

    Raises:
        ConfigError: a score is not a number
        ShapeError: the reranker did not give one score a candidate
        UnseenError: none of the hits can be looked at
    """
    if depth < 1:
        raise ConfigError(f"depth is the number of hits to rerank and at least 1, got {depth}")
    seen, new = _scores(query, hits.take(range(min(depth, len(hits)))), reranker)
    places = np.arange(len(hits))
    scores = np.full(len(hits), np.nan, np.float32)
    order = np.argsort(-new, kind="stable")
    places[seen], scores[seen] = seen[order], new[order]
    taken = hits.take(places.tolist())
    columns = {**taken.columns, "cosine": [float(s) for s in taken.scores]}
    # The probability belongs to the old first hit, so it must be told anew.
    return Hits(taken.ids, scores, columns)


def _scores(
    query: Any, head: Hits, reranker: Reranker
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The places of the hits that could be looked at, and their scores."""
    uris = head.columns.get("uri", [None] * len(head))
    seen = np.arange(len(head))
    while True:
        some = head.take(seen.tolist())
        try:
            return seen, _checked(reranker(query, some), some)
        except UnseenError as error:
            left = np.array([at for at in seen if uris[at] not in error.uris], np.int64)
            if len(left) in (0, len(seen)):
                raise
            count = len(seen) - len(left)
            log.warning("%d of %d hits keep their place: %s", count, len(seen), error)
            seen = left


def _checked(scores: Any, head: Hits) -> npt.NDArray[np.float32]:
    new = np.asarray(scores, np.float32)
    if new.shape != (len(head),):
        raise ShapeError(f"{len(head)} candidates were scored with shape {list(new.shape)}")
    if np.isnan(new).any():
        place = int(np.flatnonzero(np.isnan(new))[0])
        raise ConfigError(f"the reranker gave no number to hit {head.ids[place]!r}")
    return new


PHOTOS = 16
"""How many photos are open at once."""


def regions_of(hits: Hits, *, advice: str) -> Callable[[slice], list[Any]]:
    """Opens the region features of hits, where their rows say they are."""
    places = hits.columns.get("uri")
    if places is None:
        raise ConfigError(f"the hits name no features (column uri); {advice}")
    return lambda part: [read_place(place) for place in places[part]]


OPENED: dict[Reads, Callable[..., Callable[[slice], Sequence[Any]]]] = {
    "pictures": pictures_of,
    "regions": regions_of,
}


@dataclass(frozen=True)
class PhotoMatching:
    """Scores the hits of one worded query by their photos; satisfies `search.rerank.Reranker`.

    The query is an item (modality -> value) with a text; its other values count in the search
    only. Hits need the column ``uri``.
    """

    encoder: PairReranker

    def __call__(self, query: Inputs, candidates: Hits) -> Floats:
        """One score a candidate, float32[K]: BLIP's probability of a match, others' logit.

        Raises:
            ConfigError: the query has no words, or a hit names no photo that is there
        """
        words = query.get(TEXT, query.get("text"))
        if not isinstance(words, str):
            raise ConfigError(
                f"'{self.encoder.name}' compares words with photos: the query needs a caption, it "
                f"has {sorted(query)}; add one, or rerank by likelihood (without a reranker)"
            )
        advice = "index the photos with fourm-lite index, or rerank without a reranker"
        pictures = OPENED[self.encoder.reads](candidates, advice=advice)
        parts = [
            self.encoder.score([words] * len(some), some)
            for start in range(0, len(candidates), PHOTOS)
            if (some := pictures(slice(start, start + PHOTOS)))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def as_reranker(given: str | PairReranker | Reranker) -> Reranker:
    """What reranks the hits of a search: a name of `load_reranker`, an open one, or any callable.

    Raises:
        ConfigError: the name is of no network that judges pairs
    """
    if isinstance(given, str):
        given = load_reranker(given)
    return PhotoMatching(given) if isinstance(given, PairReranker) else given


def check_choices(reranker: Any, depth: int, **parts: Any) -> None:
    """Refuses options of reranking where nothing is reranked, or where a reranker replaces them.

    Raises:
        ConfigError: a reranker or parts of the likelihood without a depth, or both together
    """
    given = [name for name, value in parts.items() if value is not None]
    if not depth and (given or reranker is not None):
        what = "a reranker puts" if reranker is not None else f"{', '.join(given)}: reranking puts"
        asked = "; weights of what is asked for: Query.of(..., weights=...), --weight"
        raise ConfigError(
            f"{what} the first hits in order: say how many (rerank=100, --rerank 100)"
            + (asked if "weights" in given else "")
        )
    if given and reranker is not None:
        raise ConfigError(
            f"{', '.join(given)} belongs to reranking by likelihood, which the reranker replaces; "
            "leave one of them out"
        )


Scoring = Literal["logit", "combination"]
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
