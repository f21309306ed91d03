"""Reranking by a cross-encoder of text and picture: BLIP's matching head, ViLT or OSCAR.

It reads the words of the query and the photo or regions of each hit, one pass a pair; the index
and the model that searched it need know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourm_lite.embedders.base import Reads
from fourm_lite.embedders.features import read_place
from fourm_lite.embedders.rerankers import PairReranker, load_reranker
from fourm_lite.errors import ConfigError
from fourm_lite.retrieval.hits import Hits
from fourm_lite.retrieval.rerank import Reranker
from fourm_lite.search.base import TEXT, Item
from fourm_lite.search.centre import Floats
from fourm_lite.search.likelihood import pictures_of

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
    """Scores the hits of one worded query by their photos; satisfies `retrieval.rerank.Reranker`.

    The query is an item (modality -> value) with a text; its other values count in the search
    only. Hits need the column ``uri``.
    """

    encoder: PairReranker

    def __call__(self, query: Item, candidates: Hits) -> Floats:
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
    """What reranks the hits of a search: the name of a cross-encoder, an open one, or any callable.

    Raises:
        ConfigError: the name is of no matching cross-encoder
    """
    if isinstance(given, str):
        given = load_reranker(given)
    return PhotoMatching(given) if isinstance(given, PairReranker) else given


def check_choices(reranker: Any, depth: int, **parts: Any) -> None:
    """Refuses what tells how hits are reranked where none are, or where a reranker replaces it.

    Raises:
        ConfigError: a reranker or parts of the likelihood without a depth, or both together
    """
    given = [name for name, value in parts.items() if value is not None]
    if not depth and (given or reranker is not None):
        what = "a reranker puts" if reranker is not None else f"{', '.join(given)}: reranking puts"
        raise ConfigError(
            f"{what} the first hits in order: say how many (rerank=100, --rerank 100)"
        )
    if given and reranker is not None:
        raise ConfigError(
            f"{', '.join(given)} belongs to reranking by likelihood, which the reranker replaces; "
            "leave one of them out"
        )
