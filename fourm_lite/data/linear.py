"""From captions to vectors by ridge regression from words: no network at all.

A model must beat it, and may learn from it: what it says of texts without photos is their goal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
WORD = re.compile(r"[a-z0-9']+")
MAX_WORDS = 4000
PENALTY = 3.0
_BATCH = 2048


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
    scaled: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled
