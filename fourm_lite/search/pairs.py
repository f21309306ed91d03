"""Scores of all pairs of captions and photos that an evaluation asks for, each computed once.

A pair's parts are the same in both directions; only the weights differ, as the competitors do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.evaluation.retrieval import Rescore
from fourm_lite.search.centre import Floats
from fourm_lite.search.likelihood import Candidates, Likelihood, fit_weights, weighted
from fourm_lite.search.spaces import Codes, Item

Ints = npt.NDArray[np.int64]
Weights = Mapping[str, float]
Tell = Callable[[str, int, int], None]
FIT_QUERIES = 500
"""Queries of each direction that weights are fitted on: three numbers need no more."""


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
        return cls(likelihood, spoken, ready, texts @ images.T, table, empty)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that this model has."""
        return ("cosine", "codes", "caption") if self._speaks else ("cosine", "codes")

    @property
    def _speaks(self) -> bool:
        return self.candidates.context is not None and all(t is not None for t in self.texts)

    def parts(self, texts: Ints, images: Ints, names: Sequence[str]) -> dict[str, Floats]:
        """The named parts of some pairs: float32[P] each.

        Shapes:
            texts, images: int64[P]
        """
        tables = {"cosine": self.cosine, "codes": self.codes, "caption": self.said}
        if "caption" in names:
            self._say(texts, images)
        return {name: tables[name][texts, images] for name in names}

    def _say(self, texts: Ints, images: Ints) -> None:
        """Fills in what is not known yet; the table is a memory, not a value."""
        new = np.isnan(self.said[texts, images])
        if new.any():
            pairs = np.stack([texts[new], images[new]], axis=1)
            known = [t for t in self.texts if t is not None]
            self.said[pairs[:, 0], pairs[:, 1]] = self.likelihood.text_scores(
                known, self.candidates, pairs
            )

    def to_images(self, weights: Weights, tell: Tell | None = None) -> Rescore:
        """Scores photos for a caption."""
        return self._rescore(weights, tell, by_text=True)

    def to_texts(self, weights: Weights, tell: Tell | None = None) -> Rescore:
        """Scores captions for a photo."""
        return self._rescore(weights, tell, by_text=False)

    def _rescore(self, weights: Weights, tell: Tell | None, *, by_text: bool) -> Rescore:
        names = [n for n in self.names if weights.get(n)] or ["cosine"]
        total = self.cosine.shape[0 if by_text else 1]
        what = "captions reranked" if by_text else "photos reranked"

        def score(query: int, found: Ints) -> Floats:
            asked = np.full_like(found, query)
            texts, images = (asked, found) if by_text else (found, asked)
            if tell is not None:
                tell(what, query + 1, total)
            return weighted(self.parts(texts, images, names), weights)

        return score


def fit_on(
    pairs: PairScores, owner: Ints, depth: int, tell: Tell | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Weights for text to image and for image to text, from the first `depth` hits by cosine.

    Shapes:
        owner: int64[T], the photo of each caption
    """
    count, photos = pairs.cosine.shape
    by_text = _fit(
        pairs, pairs.cosine, lambda q, found: (np.full_like(found, q), found),
        lambda q, found: found == owner[q], (_spread(count), depth), tell,
    )  # fmt: skip
    by_photo = _fit(
        pairs, pairs.cosine.T, lambda q, found: (found, np.full_like(found, q)),
        lambda q, found: owner[found] == q, (_spread(photos), depth), tell,
    )  # fmt: skip
    return by_text, by_photo


def _fit(
    pairs: PairScores,
    cosine: Floats,
    pair: Callable[[int, Ints], tuple[Ints, Ints]],
    is_right: Callable[[int, Ints], npt.NDArray[np.bool_]],
    asked: tuple[Ints, int],
    tell: Tell | None,
) -> dict[str, float]:
    queries, depth = asked
    rows, right = [], []
    for number, query in enumerate(queries.tolist()):
        found = np.argsort(-cosine[query], kind="stable")[:depth]
        rows.append(pairs.parts(*pair(query, found), pairs.names))
        right.append(is_right(query, found))
        if tell is not None:
            tell("weights fitted", number + 1, len(queries))
    parts = {n: np.stack([row[n] for row in rows]) for n in pairs.names}
    return fit_weights(parts, np.stack(right))


def _spread(count: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(count, FIT_QUERIES)).astype(np.int64))
