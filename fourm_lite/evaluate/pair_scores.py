"""Scores of all pairs of captions and photos that an evaluation asks for, each computed once.

A pair's parts are the same in both directions; only the weights differ, as the competitors do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.embedders.rerankers import PairReranker
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.caption_sets import READ, CaptionPack
from fourm_lite.metrics.measures import evenly
from fourm_lite.metrics.ranking import Rescore
from fourm_lite.progress import Progress, StageProgress, of_stage
from fourm_lite.search.likelihood_scores import Candidates, Likelihood, Pictures
from fourm_lite.search.rerank_weights import (
    CAPTION_DEPTH,
    FIT_QUERIES,
    Fit,
    cascade,
    fit_cascade,
    weighted,
    words_share,
)
from fourm_lite.search.search_file import Given
from fourm_lite.search.spaces import Codes, Inputs
from fourm_lite.unit import Floats

Ints = npt.NDArray[np.int64]
Weights = Mapping[str, float]


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

    @property
    def cheap(self) -> tuple[str, ...]:
        """The parts that order the candidates first.

        The prior of a candidate text belongs to p(text | photo), so it comes with that; the prior
        of a photo's codes belongs to p(codes | text).
        """
        return ("cosine", "codes", "prior") if self.by_text else ("cosine", "codes")

    @property
    def costly(self) -> tuple[str, ...]:
        """The parts that only the first of them get."""
        return ("caption",) if self.by_text else ("caption", "prior")


@dataclass(frozen=True)
class PairScores:
    """The parts of a score, for pairs of T captions and G photos.

    Shapes:
        cosine, codes: float32[T, G]
        said: float32[T, G], mean log p(caption | photo); NaN until it is asked for
        priors: float32[G] of the photos' codes and float32[T] of the captions, minus mean log p
    """

    likelihood: Likelihood
    texts: Sequence[Tensor | None]
    candidates: Candidates
    cosine: Floats
    codes: Floats
    said: Floats
    priors: tuple[Floats, Floats]
    caption_depth: int = CAPTION_DEPTH

    @classmethod
    def of(
        cls,
        space: Any,
        items: Sequence[Inputs],
        codes: Codes | None,
        texts: Floats,
        images: Floats,
        *,
        batch_size: int = 64,
        caption_depth: int = CAPTION_DEPTH,
        given: Given = "codes",
        pictures: Pictures | None = None,
    ) -> PairScores:
        """Embeds nothing anew; one forward pass a caption and one a photo.

        Raises:
            ConfigError: the space is a dual encoder's
        """
        likelihood = Likelihood.of(space)
        if codes is None:
            raise ConfigError("reranking by likelihood needs the codes of the gallery")
        ready = likelihood.candidates(codes, pictures, given=given)
        rows, spoken = [], []
        for start in range(0, len(items), batch_size):
            batch = likelihood.space.pipe.read(items[start : start + batch_size])
            rows.append(likelihood.codes_scores(batch, ready))
            spoken += likelihood.texts(batch)
        table = np.concatenate(rows)
        empty = np.full_like(table, np.nan)
        known = [t for t in spoken if t is not None]
        says = likelihood.text is not None and len(known) == len(items)
        own = -likelihood.text_prior(known) if says else np.zeros(len(items), np.float32)
        priors = (-likelihood.codes_prior(ready), own)
        cosine = texts @ images.T
        return cls(likelihood, spoken, ready, cosine, table, empty, priors, caption_depth)

    def with_given(self, given: Given, codes: Codes, pictures: Pictures) -> PairScores:
        """The same pairs, their texts predicted from other inputs of the photos."""
        ready = self.likelihood.candidates(codes, pictures, given=given)
        return dataclasses.replace(self, candidates=ready, said=np.full_like(self.said, np.nan))

    @property
    def speaks(self) -> bool:
        """Whether this model can say the captions from the photos."""
        return self.candidates.context is not None and all(t is not None for t in self.texts)

    def parts(
        self, direction: Direction, query: int, found: Ints, names: Sequence[str]
    ) -> dict[str, Floats]:
        """The named parts of one query's candidates, as far as they are known: float32[K] each."""
        texts, images = direction.pairs(query, found)
        tables = {"cosine": self.cosine, "codes": self.codes, "caption": self.said}
        prior = self.priors[0] if direction.by_text else self.priors[1]
        known = {
            name: prior[found] if name == "prior" else tables[name][texts, images] for name in names
        }
        if direction.by_text and "caption" in known:  # captions of one photo compete as means
            known["caption"] = known["caption"] * self._share[query]
        return known

    @cached_property
    def _share(self) -> Floats:
        return words_share([() if text is None else text for text in self.texts])

    def say(self, texts: Ints, images: Ints, progress: StageProgress | None = None) -> None:
        """Fills in log p(caption | photo) where it is not known yet.

        The table is a memory, not a value: what it holds never changes.
        """
        new = np.isnan(self.said[texts, images])
        if not new.any():
            return
        pairs = np.unique(np.stack([texts[new], images[new]], axis=1), axis=0)
        known = [t for t in self.texts if t is not None]
        told = of_stage(progress, "pairs reranked")
        found = self.likelihood.text_scores(known, self.candidates, pairs, told)
        self.said[pairs[:, 0], pairs[:, 1]] = found

    def rescore(
        self,
        weights: Weights,
        direction: Direction,
        depth: int,
        progress: StageProgress | None = None,
    ) -> Rescore:
        """Scores the first `depth` by cosine of each query; what is costly is asked for at once."""
        costly = [n for n in direction.costly if weights.get(n)] if self.speaks else []
        if not weights.get("caption"):
            costly = []
        if costly:
            queries = np.arange(len(direction.rows(self.cosine)))
            self._say_first(direction, self._first(weights, direction, depth, queries), progress)

        def score(query: int, found: Ints) -> Floats:
            parts = self.parts(direction, query, found, direction.cheap)
            if not costly:
                return weighted(parts, weights)

            def say(rows: Ints) -> Floats:
                # Cosines of equal captions may round otherwise there: what is absent is said now.
                self.say(*direction.pairs(query, found[rows]))
                return weighted(self.parts(direction, query, found[rows], costly), weights)

            return cascade(parts, weights, self.caption_depth, say)

        return score

    def _say_first(
        self, direction: Direction, found: Mapping[int, Ints], progress: StageProgress | None
    ) -> None:
        """All pairs of some queries at once, which is faster than one query at a time."""
        pairs = [direction.pairs(query, rows) for query, rows in found.items()]
        texts, images = (np.concatenate(side) for side in zip(*pairs, strict=True))
        self.say(texts, images, progress)

    def _first(
        self, weights: Weights, direction: Direction, depth: int, queries: Ints
    ) -> dict[int, Ints]:
        """For each query the candidates that get the costly parts."""
        cheap = {n: w for n, w in weights.items() if n in direction.cheap and w}
        table = direction.rows(self.cosine)
        first = {}
        for query in queries.tolist():
            found = np.argsort(-table[query], kind="stable")[:depth]
            parts = self.parts(direction, query, found, direction.cheap)
            order = weighted(parts, cheap) if cheap else parts["cosine"]
            first[query] = found[np.argsort(-order, kind="stable")[: self.caption_depth]]
        return first

    def fit(
        self,
        direction: Direction,
        depth: int,
        progress: StageProgress | None = None,
        *,
        most: int = FIT_QUERIES,
    ) -> Fit:
        """Weights from queries whose right answers are known, as a cascade uses them.

        At most so many of the queries are taken, drawn evenly.
        """
        table = direction.rows(self.cosine)
        queries = evenly(len(table), most)
        found = np.stack([np.argsort(-table[q], kind="stable")[:depth] for q in queries])
        cheap = self._tables(direction, queries, found, direction.cheap)
        right = np.stack(
            [self._is_right(direction, q, row) for q, row in zip(queries, found, strict=True)]
        )

        def say(top: Ints) -> dict[str, Floats]:
            first = np.take_along_axis(found, top, axis=1)
            self._say_first(direction, dict(zip(queries.tolist(), first, strict=True)), progress)
            return self._tables(direction, queries, first, direction.costly)

        fit = fit_cascade(cheap, right, self.caption_depth, say if self.speaks else None)
        if direction.by_text or fit.weights.get("caption"):
            return fit
        # without log p(caption | photo) there is nothing that its prior could be taken off
        return dataclasses.replace(fit, weights={**fit.weights, "prior": 0.0})

    def _tables(
        self, direction: Direction, queries: Ints, found: Ints, names: Sequence[str]
    ) -> dict[str, Floats]:
        """The named parts of several queries, float32[Q, K] each."""
        rows = [
            self.parts(direction, q, row, names)
            for q, row in zip(queries.tolist(), found, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in names}

    def _is_right(self, direction: Direction, query: int, found: Ints) -> npt.NDArray[np.bool_]:
        texts, images = direction.pairs(int(query), found)
        return np.asarray(direction.owner[texts] == images)


def judged_by(
    reranker: PairReranker, pack: CaptionPack, batch_size: int, progress: Progress | None = None
) -> tuple[Rescore, Rescore]:
    """Scores of a network that judges pairs, for captions that ask and for photos that do."""

    def picture(number: int) -> Any:
        return READ[reranker.reads](pack.photos[number])

    count = len(pack.photos)
    score = reranker.over(pack.captions, picture, count, batch_size=batch_size, progress=progress)
    forward, back = (Direction(pack.owner, by_text) for by_text in (True, False))
    return (
        lambda query, found: score(*forward.pairs(query, found)),
        lambda query, found: score(*back.pairs(query, found)),
    )
