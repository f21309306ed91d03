"""Scores of all pairs of captions and photos that an evaluation asks for, each computed once.

A pair's parts are the same in both directions; only the weights differ, as the competitors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.evaluation.retrieval import Rescore
from fourm_lite.search.centre import Floats
from fourm_lite.search.likelihood import (
    CAPTION_DEPTH,
    Candidates,
    Likelihood,
    cascade,
    fit_weights,
    weighted,
)
from fourm_lite.search.spaces import Codes, Item

Ints = npt.NDArray[np.int64]
Weights = Mapping[str, float]
Tell = Callable[[str, int, int], None]
CHEAP = ("cosine", "codes")
FIT_QUERIES = 500
"""Queries of each direction that weights are fitted on: three numbers need no more."""


@dataclass(frozen=True)
class Direction:
    """Which side asks.

    Shapes:
        owner: int64[T], the photo of each caption
    """

    owner: Ints
    by_text: bool

    def pairs(self, query: int, found: Ints) -> tuple[Ints, Ints]:
        """Caption and photo numbers of one query with candidates."""
        asked = np.full_like(found, query)
        return (asked, found) if self.by_text else (found, asked)

    def rows(self, table: Floats) -> Floats:
        """A table [T, G] with a row a query."""
        return table if self.by_text else table.T


@dataclass(frozen=True)
class PairScores:
    """The parts of a score, for pairs of T captions and G photos.

    Shapes:
        cosine, codes: float32[T, G]
        said: float32[T, G], mean log p(caption | photo); NaN until it is asked for
    """

    likelihood: Likelihood
    texts: Sequence[Tensor | None]
    candidates: Candidates
    cosine: Floats
    codes: Floats
    said: Floats
    caption_depth: int = CAPTION_DEPTH

    @classmethod
    def of(
        cls,
        space: Any,
        items: Sequence[Item],
        codes: Codes | None,
        texts: Floats,
        images: Floats,
        *,
        batch_size: int = 64,
        caption_depth: int = CAPTION_DEPTH,
    ) -> PairScores:
        """Embeds nothing anew; one forward pass a caption and one a photo's codes.

        Raises:
            ConfigError: the space is a twin encoder's
        """
        likelihood = Likelihood.of(space)
        if codes is None:
            raise ConfigError("reranking by likelihood needs the codes of the gallery")
        ready = likelihood.candidates(codes)
        rows, spoken = [], []
        for start in range(0, len(items), batch_size):
            batch = likelihood.space.pipe.read(items[start : start + batch_size])
            rows.append(likelihood.codes_scores(batch, ready))
            spoken += likelihood.texts(batch)
        table = np.concatenate(rows)
        empty = np.full_like(table, np.nan)
        cosine = texts @ images.T
        return cls(likelihood, spoken, ready, cosine, table, empty, caption_depth)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that this model has."""
        return ("cosine", "codes", "caption") if self._speaks else ("cosine", "codes")

    @property
    def _speaks(self) -> bool:
        return self.candidates.context is not None and all(t is not None for t in self.texts)

    def parts(self, texts: Ints, images: Ints, names: Sequence[str]) -> dict[str, Floats]:
        """The named parts of some pairs, of those that are known: float32[P] each.

        Shapes:
            texts, images: int64[P]
        """
        tables = {"cosine": self.cosine, "codes": self.codes, "caption": self.said}
        return {name: tables[name][texts, images] for name in names}

    def say(self, texts: Ints, images: Ints, tell: Tell | None = None) -> None:
        """Fills in log p(caption | photo) where it is not known yet.

        The table is a memory, not a value: what it holds never changes.
        """
        new = np.isnan(self.said[texts, images])
        if not new.any():
            return
        pairs = np.unique(np.stack([texts[new], images[new]], axis=1), axis=0)
        known = [t for t in self.texts if t is not None]
        told = None if tell is None else lambda done, total: tell("pairs reranked", done, total)
        found = self.likelihood.text_scores(known, self.candidates, pairs, told)
        self.said[pairs[:, 0], pairs[:, 1]] = found

    def rescore(
        self, weights: Weights, direction: Direction, depth: int, tell: Tell | None = None
    ) -> Rescore:
        """Scores the first `depth` by cosine of each query; what is costly is asked for at once."""
        speaks = bool(weights.get("caption")) and "caption" in self.names
        if speaks:
            self._say_first(direction, dict(self._first(weights, direction, depth)), tell)

        def score(query: int, found: Ints) -> Floats:
            texts, images = direction.pairs(query, found)
            parts = self.parts(texts, images, CHEAP)
            if not speaks:
                return weighted(parts, weights)

            def say(rows: Ints) -> Floats:
                # Cosines of equal captions may round otherwise there: what is absent is said now.
                self.say(texts[rows], images[rows])
                return weights["caption"] * self.said[texts[rows], images[rows]]

            return cascade(parts, weights, self.caption_depth, say)

        return score

    def _say_first(
        self, direction: Direction, found: Mapping[int, Ints], tell: Tell | None
    ) -> None:
        """All pairs of some queries at once, which is faster than one query at a time."""
        pairs = [direction.pairs(query, rows) for query, rows in found.items()]
        texts, images = (np.concatenate(side) for side in zip(*pairs, strict=True))
        self.say(texts, images, tell)

    def _first(
        self, weights: Weights, direction: Direction, depth: int, queries: Ints | None = None
    ) -> Iterator[tuple[int, Ints]]:
        """For each query the candidates that get the costly part."""
        cheap = {n: w for n, w in weights.items() if n in CHEAP and w}
        table = direction.rows(self.cosine)
        chosen = np.arange(len(table)) if queries is None else queries
        for query in chosen.tolist():
            found = np.argsort(-table[query], kind="stable")[:depth]
            parts = self.parts(*direction.pairs(query, found), CHEAP)
            order = weighted(parts, cheap) if cheap else parts["cosine"]
            yield query, found[np.argsort(-order, kind="stable")[: self.caption_depth]]

    def fit(self, direction: Direction, depth: int, tell: Tell | None = None) -> dict[str, float]:
        """Weights from queries whose right answers are known.

        The cheap parts are weighed on the first `depth` by cosine, then their sum against the
        costly part on the first `caption_depth` of that order, as they will be used.
        """
        table = direction.rows(self.cosine)
        queries = _spread(len(table))
        found = {q: np.argsort(-table[q], kind="stable")[:depth] for q in queries.tolist()}
        cheap = self._fitted(direction, found, CHEAP)
        if "caption" not in self.names:
            return cheap
        found = dict(self._first(cheap, direction, depth, queries))
        self._say_first(direction, found, tell)
        return self._fitted(direction, found, ("caption",), cheap)

    def _fitted(
        self,
        direction: Direction,
        found: Mapping[int, Ints],
        names: Sequence[str],
        cheap: Weights | None = None,
    ) -> dict[str, float]:
        """Weights of the named parts; with `cheap` also one factor for their sum."""
        rows, right = [], []
        for query, candidates in found.items():
            texts, images = direction.pairs(query, candidates)
            row = self.parts(texts, images, names)
            if cheap is not None:
                row["cosine"] = weighted(self.parts(texts, images, CHEAP), cheap)
            rows.append(row)
            right.append(direction.owner[texts] == images)
        table = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        weights = fit_weights(table, np.stack(right))
        if cheap is None:
            return weights
        factor = weights.pop("cosine")
        return {**{name: factor * w for name, w in cheap.items()}, **weights}


def _spread(count: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(count, FIT_QUERIES)).astype(np.int64))
