"""What cross-encoders share: pairs of a text and a picture in, a score each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.embedders.base import Reads, Vectors
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import PictureSource


class PairReranker(ABC):
    """A cross-encoder over pairs of text and picture; what all of them share.

    `name` is the specification it was loaded from; `reads` says what a picture is to it.
    """

    reads: Reads = "pictures"

    def __init__(self, name: str) -> None:
        self.name = name

    def score(
        self,
        texts: str | Sequence[str],
        images: Any,
        batch_size: int = 16,
    ) -> Vectors:
        """How well each pair matches, larger is better; one text or one picture meets all others.

        Shapes:
            returns: float32[K], K pairs
        Raises:
            ConfigError: neither side is single and their numbers differ
            FourMError: a score is NaN
        """
        pairs = as_pairs(texts, images)
        scores = np.zeros(len(pairs), np.float32)
        for positions, some in self._batches(pairs, batch_size):
            scores[positions] = self._forward(some).float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise FourMError(f"'{self.name}' gave NaN for pair {int(np.isnan(scores).argmax())}")
        return scores

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """The probability that each pair matches, float32[K]; pairs as in `score`."""
        logits = torch.from_numpy(self.score(texts, images, batch_size))
        found: Vectors = logits.sigmoid().numpy()
        return found

    def __call__(self, query: str, candidates: Any) -> Vectors:
        """Scores of a search's hits, by the picture that their column "uri" names.

        This is what `search.rerank` calls; `query` is the text.

        Raises:
            ConfigError: the hits say nothing about where their pictures are
        """
        uris = candidates.columns.get("uri")
        if uris is None:
            raise ConfigError(
                f"a cross-encoder reads pictures: the hits need a column 'uri', they have "
                f"{sorted(candidates.columns)}"
            )
        return self.score(query, list(uris))

    def rank(
        self,
        text: str,
        images: Sequence[PictureSource],
        *,
        ids: Sequence[Any] | None = None,
        k: int | None = None,
        batch_size: int = 16,
    ) -> list[tuple[Any, float]]:
        """The pictures by falling score, as (id, score); ids are positions unless given."""
        names = list(range(len(images))) if ids is None else list(ids)
        if len(names) != len(images):
            raise ConfigError(f"{len(images)} pictures need as many ids, got {len(names)}")
        scores = self.score(text, images, batch_size)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(names[i], float(scores[i])) for i in order]

    @abstractmethod
    def _batches(self, pairs: list[Any], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        """Positions of pairs that are scored together, and what `_forward` reads of them."""

    @abstractmethod
    def _forward(self, some: Any) -> Tensor:
        """One score a pair, [B]."""


def as_pairs(texts: Any, images: Any) -> list[tuple[str, Any]]:
    """Texts and pictures by position; one of either meets all of the others.

    Raises:
        ConfigError: neither side is single and their numbers differ
    """
    many_texts = [texts] if isinstance(texts, str) else list(texts)
    many_images = list(images) if isinstance(images, list | tuple) else [images]
    count = max(len(many_texts), len(many_images))
    if 0 in (len(many_texts), len(many_images)):
        return []
    for what, items in (("texts", many_texts), ("pictures", many_images)):
        if len(items) not in (1, count):
            raise ConfigError(
                f"{len(many_texts)} texts and {len(many_images)} pictures do not pair; give as "
                f"many of both, or one of the {what}"
            )
    many_texts = many_texts * (count if len(many_texts) == 1 else 1)
    many_images = many_images * (count if len(many_images) == 1 else 1)
    return list(zip(many_texts, many_images, strict=True))
