"""The heads of a joint space: linear maps of frozen features to unit vectors of one width.

Pictures have one map; texts have one of their sentence vector, one of their words, or both, whose
results are added. Words count by TF-IDF: a rare one more than a frequent one, and the vector of a
text's counts has length 1. A word that the vocabulary lacks is left to the sentence encoder.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.errors import ConfigError

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Bags:
    """Texts as the words that they hold.

    Shapes:
        ids: int64[n], words of all texts; weights: float32[n]; starts: int64[B], of each text
    """

    ids: Tensor
    weights: Tensor
    starts: Tensor

    def to(self, device: torch.device | str) -> Bags:
        """The same on another device."""
        return Bags(self.ids.to(device), self.weights.to(device), self.starts.to(device))

    @classmethod
    def joined(cls, rows: Sequence[tuple[Tensor, Tensor]]) -> Bags:
        """The bags of some texts, each (ids, weights)."""
        lengths = torch.tensor([0, *(len(ids) for ids, _ in rows[:-1])])
        empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        ids, weights = zip(*rows, strict=True) if rows else ((empty[0],), (empty[1],))
        return cls(torch.cat(ids), torch.cat(weights), lengths.cumsum(0)[: len(rows)])


@dataclass(frozen=True)
class WordWeights:
    """The words that are known, and what each counts."""

    words: tuple[str, ...]
    idf: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses tables that do not fit each other."""
        if len(self.words) != len(self.idf) or len(set(self.words)) != len(self.words):
            raise ConfigError(
                f"expected one weight for each of unlike words, got {len(self.words)} words "
                f"({len(set(self.words))} unlike) and {len(self.idf)} weights"
            )
        object.__setattr__(self, "_place", {word: i for i, word in enumerate(self.words)})

    @classmethod
    def of(cls, texts: Sequence[str], least: int) -> WordWeights:
        """The words that stand in at least so many of the texts."""
        counts = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, n in counts.items() if n >= least)
        idf = [math.log((1 + len(texts)) / (1 + counts[word])) + 1 for word in known]
        return cls(tuple(known), tuple(round(value, 5) for value in idf))

    def row(self, text: str) -> tuple[Tensor, Tensor]:
        """Known words of a text: ids int64[n] and TF-IDF weights float32[n] of length 1."""
        place: dict[str, int] = self._place  # type: ignore[attr-defined]
        counts = Counter(place[word] for word in _words(text) if word in place)
        weights = torch.tensor([(1 + math.log(n)) * self.idf[i] for i, n in counts.items()])
        return torch.tensor(list(counts), dtype=torch.int64), F.normalize(weights, dim=0)

    def bags(self, texts: Sequence[str]) -> Bags:
        """The words of some texts."""
        return Bags.joined([self.row(text) for text in texts])


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Side(nn.Module):
    """A linear map of features that are brought to mean 0 and one spread first."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def measure(self, values: Tensor) -> None:
        """Takes mean and spread from training features: float32[N, E]."""
        self.mean.copy_(values.mean(0))
        self.deviation.copy_((values - self.mean).std().clamp(min=1e-6))

    def forward(self, values: Tensor, dropout: float = 0.0) -> Tensor:
        """float[B, E] -> float[B, D]."""
        return self.linear(F.dropout((values - self.mean) / self.deviation, dropout, dropout > 0))


class JointHeads(nn.Module):
    """Both sides of a joint space.

    Units:
        image, text: widths of the features, text 0 where there is no sentence encoder
        words: size of the vocabulary, 0 for none; width: of the space
    Raises:
        ConfigError: texts have neither sentence vectors nor words
    """

    def __init__(self, image: int, text: int, words: int, width: int) -> None:
        super().__init__()
        if not text and not words:
            raise ConfigError("a joint space needs a sentence encoder, or words, or both")
        self.image = Side(image, width)
        self.text = Side(text, width) if text else None
        self.words = nn.EmbeddingBag(words, width, mode="sum") if words else None
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))  # of cosines, as CLIP's

    def init_weights(self, generator: torch.Generator) -> JointHeads:
        """Draws the maps."""
        for side in (self.image, self.text):
            if side is not None:
                bound = side.linear.in_features**-0.5
                side.linear.weight.data.uniform_(-bound, bound, generator=generator)
                side.linear.bias.data.zero_()
        if self.words is not None:
            self.words.weight.data.normal_(0.0, 0.02, generator=generator)
        return self

    def embed_images(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Features of pictures float[B, E] -> unit vectors float[B, D]."""
        return F.normalize(self.image(features, dropout), dim=-1)

    def embed_texts(
        self, sentences: Tensor | None, bags: Bags | None, dropout: float = 0.0
    ) -> Tensor:
        """Sentence vectors float[B, E] and words of texts -> unit vectors float[B, D]."""
        parts = []
        if self.text is not None and sentences is not None:
            parts.append(self.text(sentences, dropout))
        if self.words is not None and bags is not None:
            weights = F.dropout(bags.weights, dropout, dropout > 0)
            parts.append(self.words(bags.ids, bags.starts, per_sample_weights=weights))
        return F.normalize(torch.stack(parts).sum(0), dim=-1)

    def forward(
        self, images: Tensor, sentences: Tensor | None, bags: Bags | None, dropout: float = 0.0
    ) -> Tensor:
        """Scaled cosines of all texts of a batch to all its pictures: float[B, B]."""
        found = self.embed_images(images, dropout)
        texts = self.embed_texts(sentences, bags, dropout)
        return self.scale.exp().clamp(max=100.0) * texts @ found.T
