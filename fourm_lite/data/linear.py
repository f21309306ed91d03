"""What linear algebra finds without gradients: ridge regression, principal components, k-means.

`ridge_from_words` answers captions with vectors, no network at all: a model must beat it, and may
learn from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.unit import Floats, unit

WORD = re.compile(r"[a-z0-9']+")
MAX_WORDS = 4000
PENALTY = 3.0
_BATCH = 2048
_CHUNK = 8192


def ridge_from_words(
    captions: Sequence[str], vectors: Floats, queries: Sequence[str], *, penalty: float = PENALTY
) -> Floats:
    """Vectors of queries by TF-IDF and ridge regression from captions to the vectors they go with.

    Words that training captions use once are left out.

    Shapes:
        vectors: float32[len(captions), E], centred by the caller
        returns: float32[len(queries), E]
    """
    counts = Counter(word for text in captions for word in set(_words(text)))
    known = [word for word, n in counts.most_common(MAX_WORDS) if n >= 2]
    if not known:
        return np.zeros((len(queries), vectors.shape[1]), np.float32)
    column = {word: i for i, word in enumerate(known)}
    weight = np.log((len(captions) + 1) / (np.array([counts[w] for w in known]) + 1)) + 1
    gram = penalty * np.eye(len(known), dtype=np.float32)
    moment = np.zeros((len(known), vectors.shape[1]), np.float32)
    for start in range(0, len(captions), _BATCH):
        x = _features(captions[start : start + _BATCH], column, weight)
        gram += x.T @ x
        moment += x.T @ vectors[start : start + _BATCH]
    linear = np.linalg.solve(gram, moment)
    made: Floats = (_features(queries, column, weight) @ linear).astype(np.float32)
    return made


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _features(
    texts: Sequence[str], column: dict[str, int], weight: npt.NDArray[np.float64]
) -> Floats:
    """Unit TF-IDF rows float32[N, words]."""
    rows = np.zeros((len(texts), len(column)), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in _words(text):
            if word in column:
                row[column[word]] += 1
    rows *= weight.astype(np.float32)
    return unit(rows)


def solve_ridge(gram: Tensor, moment: Tensor, penalty: Tensor | float) -> Tensor:
    """The linear map that second moments give.

    Shapes:
        gram: float[k, k], sum of x x^T; moment: float[k, m], sum of x y^T; returns float[k, m]
    Units:
        penalty: of all inputs, or float[k], of each
    """
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), moment)


def ridge(x: Tensor, y: Tensor, penalty: float, weights: Tensor | None = None) -> Tensor:
    """Linear regression with a constant in the last row: float[N, k], float[N, m] -> [k + 1, m]."""
    x1 = F.pad(x, (0, 1), value=1.0)
    weighted = x1 if weights is None else x1 * weights[:, None]
    return solve_ridge(weighted.T @ x1, weighted.T @ y, penalty)


@dataclass(frozen=True)
class Principal:
    """The directions of largest variance.

    Shapes:
        mean: float[D]; directions: float[D, k], orthonormal; deviation: float[k]
    """

    mean: Tensor
    directions: Tensor
    deviation: Tensor

    def project(self, x: Tensor) -> Tensor:
        """float[N, D] -> float[N, k]."""
        return (x - self.mean) @ self.directions


def principal(x: Tensor, k: int, generator: torch.Generator, *, rounds: int = 6) -> Principal:
    """Principal components by subspace iteration.

    Shapes:
        x: float[N, D], k <= min(N, D)
    Source:
        Finding Structure with Randomness (Halko et al. 2011), algorithm 4.4
    """
    mean = x.mean(dim=0)
    centered = x - mean
    width = min(k + 8, *x.shape)
    q = torch.randn(x.shape[1], width, generator=generator)
    for _ in range(rounds):
        q, _ = torch.linalg.qr(centered.T @ (centered @ q))
    _, size, directions = torch.linalg.svd(centered @ q, full_matrices=False)
    basis = q @ directions.T[:, :k]
    return Principal(mean, basis, size[:k] / max(1, len(x) - 1) ** 0.5)


def kmeans(
    x: Tensor, k: int, generator: torch.Generator, *, rounds: int = 15, start: Tensor | None = None
) -> Tensor:
    """Centers of k groups; an empty group takes a random row.

    Shapes:
        x: float[N, d] -> float[k, d]
    """
    if start is None:
        start = x[torch.randint(len(x), (k,), generator=generator)]
        if len(x) >= k:
            start = x[torch.randperm(len(x), generator=generator)[:k]]
    centers = start.clone()
    for _ in range(rounds):
        nearest = nearest_center(x, centers)
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        used = counts > 0
        centers[used] = sums[used] / counts[used, None]
        empty = int((~used).sum())
        if empty:
            centers[~used] = x[torch.randint(len(x), (empty,), generator=generator)]
    return centers


def nearest_center(x: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest center: float[N, d], float[k, d] -> int64[N]."""
    bias = -0.5 * centers.square().sum(dim=1)
    return torch.cat([(part @ centers.T + bias).argmax(dim=1) for part in x.split(_CHUNK)])
