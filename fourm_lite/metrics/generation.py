"""How well generated values fit what they should be: one natural measure for each kind of value.

A measure gives statistics a photo, float64[N, K], and how their mean becomes the figure: most are
means themselves, mIoU is a ratio of sums. That is enough for bootstrap intervals over photos.
NumPy only; knows nothing of models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ShapeError

Array = npt.NDArray[np.float64]
Finish = Callable[[Array], float]
EDGE_TOLERANCE = 2
MAX_ORDER = 4


def first(mean: Array) -> float:
    """The figure of a measure that is a plain mean."""
    return float(mean[0])


@dataclass(frozen=True)
class Measured:
    """One figure with its parts.

    Shapes:
        parts: float64[N, K], a row a photo; `finish` makes the figure of their mean
    """

    parts: Array
    finish: Finish = first

    @property
    def value(self) -> float:
        """The figure over all photos."""
        return self.finish(self.parts.mean(axis=0))

    def interval(self, *, draws: int = 1000, seed: int = 0) -> list[float]:
        """Bounds of 95 % of the figures when photos are drawn anew."""
        rng = np.random.default_rng(seed)
        count = len(self.parts)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
        values = [self.finish(mean) for mean in weights @ self.parts]
        return [round(float(v), 6) for v in np.nanquantile(values, (0.025, 0.975))]


def mean_iou(found: Any, right: Any, classes: int) -> Measured:
    """Intersection over union of class maps, the mean over the classes that occur in `right`.

    Shapes:
        found, right: int[N, H, W]
    """
    one, two = np.asarray(found, np.int64), np.asarray(right, np.int64)
    _same(one, two)
    pairs = (two * classes + one).reshape(len(one), -1)
    table = np.stack([np.bincount(row, minlength=classes**2) for row in pairs])

    def finish(mean: Array) -> float:
        confusion = mean.reshape(classes, classes)
        hit = np.diag(confusion)
        there = confusion.sum(axis=1)
        union = there + confusion.sum(axis=0) - hit
        return float((hit[there > 0] / union[there > 0]).mean())

    return Measured(table.astype(np.float64), finish)


def edge_f1(found: Any, right: Any, tolerance: int = EDGE_TOLERANCE) -> Measured:
    """F1 of edge pixels; a pixel is hit if the other map has one within `tolerance` pixels.

    Shapes:
        found, right: bool[N, H, W]
    """
    one, two = np.asarray(found, bool), np.asarray(right, bool)
    _same(one, two)
    precision = _share(one, _grown(two, tolerance))
    recall = _share(two, _grown(one, tolerance))
    total = precision + recall
    empty_both = ~one.any(axis=(1, 2)) & ~two.any(axis=(1, 2))
    f1 = np.where(total > 0, 2 * precision * recall / np.maximum(total, 1e-12), 0.0)
    return Measured(np.where(empty_both, 1.0, f1)[:, None])


def _grown(edges: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """The pixels within a square of `by` around an edge pixel."""
    height, width = edges.shape[1:]
    padded = np.pad(edges, ((0, 0), (by, by), (by, by)))
    rows = np.any([padded[:, i : i + height] for i in range(2 * by + 1)], axis=0)
    return np.any([rows[:, :, i : i + width] for i in range(2 * by + 1)], axis=0)


def _share(edges: npt.NDArray[np.bool_], near: npt.NDArray[np.bool_]) -> Array:
    counts = edges.sum(axis=(1, 2))
    return np.where(counts > 0, (edges & near).sum(axis=(1, 2)) / np.maximum(counts, 1), 0.0)


def palette_distances(found: Sequence[Any], right: Sequence[Any]) -> Measured:
    """How far colours are from the nearest of the other palette, both ways, in levels of 0..255.

    A palette without colours is as far as black from white: 441.7.

    Shapes:
        found, right: N palettes of [n, 3]
    """
    rows = [_palette_distance(a, b) for a, b in zip(found, right, strict=True)]
    return Measured(np.array(rows, np.float64)[:, None])


def _palette_distance(found: Any, right: Any) -> float:
    one = np.asarray(list(found), np.float64).reshape(-1, 3)
    two = np.asarray(list(right), np.float64).reshape(-1, 3)
    if not len(one) or not len(two):
        return 255 * math.sqrt(3)
    apart = np.linalg.norm(one[:, None] - two[None], axis=-1)
    return float((apart.min(axis=0).mean() + apart.min(axis=1).mean()) / 2)


def centred_cosines(found: Any, right: Any, mean: Any) -> Measured:
    """Cosine of vectors, the mean taken off both: of a map, the mean over its places.

    Shapes:
        found, right: float[N, E] or float[N, E, h, w]; mean: float[E] or float[E, 1, 1]
    """
    one, two = (np.asarray(x, np.float64) - mean for x in (found, right))
    _same(one, two)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosine = (one * two).sum(axis=1) / np.maximum(norms, 1e-12)
    return Measured(cosine.reshape(len(one), -1).mean(axis=1, keepdims=True))


def psnr(found: Any, right: Any) -> Measured:
    """Peak signal-to-noise ratio in dB of pixels in 0..255, the mean over photos.

    Shapes:
        found, right: N pictures of one shape, such as uint8[N, H, W, 3]
    """
    _same(np.asarray(found), np.asarray(right))
    pairs = zip(found, right, strict=True)  # a photo at a time: the whole as floats is large
    error = np.array([((a.astype(np.float32) - b) ** 2).mean() for a, b in pairs], np.float64)
    return Measured(-10 * np.log10(np.maximum(error / 255**2, 1e-10))[:, None])


def number_errors(found: Any, right: Any, spread: Any) -> Measured:
    """Absolute errors of numbers in their standard deviations, the mean over the numbers.

    Shapes:
        found, right: float[N, F]; spread: float[F]
    """
    one, two = np.asarray(found, np.float64), np.asarray(right, np.float64)
    _same(one, two)
    return Measured((np.abs(one - two) / np.maximum(spread, 1e-9)).mean(axis=1, keepdims=True))


def word_accuracy(said: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """The share of a text's words that a photo's captions hold, each as often as one of them does.

    A text that is shorter than the nearest caption is marked down by exp(1 - wanted / said).

    Source:
        BLEU (Papineni et al. 2002) with words alone, a text at a time
    """
    rows = [_word_accuracy(s, r) for s, r in zip(said, references, strict=True)]
    return Measured(np.array(rows, np.float64)[:, None])


def _word_accuracy(said: str, references: Sequence[str]) -> float:
    spoken, known = words(said), [words(r) for r in references]
    if not spoken:
        return 0.0
    allowed: Counter[str] = Counter()
    for reference in known:
        allowed |= Counter(reference)
    hit = sum((Counter(spoken) & allowed).values())
    wanted = min((abs(len(k) - len(spoken)), len(k)) for k in known)[1]
    return hit / len(spoken) * math.exp(min(0.0, 1 - wanted / len(spoken)))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return kept.split()


Grams = list[Counter[tuple[str, ...]]]


@dataclass(frozen=True)
class Cider:
    """N-gram agreement with several captions; what captions of all photos share counts little.

    Cosines of the TF-IDF weights of 1- to 4-grams, mean over orders and captions, times ten.

    Args:
        rarity: n-gram -> log(photos / photos whose captions hold it)
    Source:
        CIDEr (Vedantam et al. 2015), without stemming
    """

    rarity: dict[tuple[str, ...], float]
    photos: int

    @classmethod
    def of(cls, references: Sequence[Sequence[str]]) -> Cider:
        """Weights from the captions of all photos."""
        counts: Counter[tuple[str, ...]] = Counter()
        for captions in references:
            counts.update({g for c in captions for order in _grams(c) for g in order})
        total = len(references)
        return cls({g: math.log(total / n) for g, n in counts.items()}, total)

    def __call__(self, said: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        """Scores of texts, each against the captions of its photo."""
        rows = [self._one(s, r) for s, r in zip(said, references, strict=True)]
        return Measured(np.array(rows, np.float64)[:, None])

    def _one(self, said: str, references: Sequence[str]) -> float:
        spoken = self._weighted(_grams(said))
        scores = [
            sum(_cosine(a, b) for a, b in zip(spoken, self._weighted(_grams(r)), strict=True))
            for r in references
        ]
        return 10 * float(np.mean(scores)) / MAX_ORDER

    def _weighted(self, grams: Grams) -> list[dict[tuple[str, ...], float]]:
        unknown = math.log(self.photos)
        return [{g: n * self.rarity.get(g, unknown) for g, n in order.items()} for order in grams]


def _grams(text: str) -> Grams:
    said = words(text)
    return [
        Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
        for n in range(1, MAX_ORDER + 1)
    ]


def _cosine(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(v * b.get(g, 0.0) for g, v in a.items()) / norms if norms else 0.0


def hits_at(vectors: Any, gallery: Any, k: int = 10) -> Measured:
    """Whether each vector's own row of the gallery is among its k nearest; ties count against us.

    Shapes:
        vectors, gallery: float[N, E], unit length
    """
    scores = np.asarray(vectors, np.float64) @ np.asarray(gallery, np.float64).T
    own = np.diag(scores)[:, None]
    ranks = (scores >= own).sum(axis=1)  # the right answer is one of them
    return Measured((ranks <= k).astype(np.float64)[:, None])


def _same(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> None:
    if one.shape != two.shape or not len(one):
        raise ShapeError(
            f"generated and wanted values need one shape and at least one row, got "
            f"{list(one.shape)} and {list(two.shape)}"
        )
