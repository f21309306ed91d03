"""The k-nearest-neighbour classifier that embeddings are compared by (k = 20, T = 0.07).

Each of the k nearest training vectors votes for its class with weight exp(cosine / T); the class
with the largest sum wins, of equal sums the smaller label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError

Labels = npt.NDArray[np.int64]
BLOCK = 256


def knn_predict(
    train: Any,
    labels: Any,
    queries: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_self_out: bool = False,
) -> Labels:
    """The class of every query by its k nearest training vectors.

    Shapes:
        train: float[N, E], queries: float[Q, E]; made unit length here
        labels: int[N], of at least 0
        returns: int64[Q]
    Args:
        train: vectors whose class is known
        labels: these classes
        queries: vectors whose class is asked
        k: neighbours; all where there are fewer
        temperature: smaller trusts nearer neighbours more
        leave_self_out: queries are the training vectors, and none votes for itself

    Source:
        Wu et al. 2018 (instance discrimination); protocol of DINO and of 4M-21, Table 1
    """
    votes = knn_votes(
        train, labels, queries, k=k, temperature=temperature, leave_self_out=leave_self_out
    )
    return votes.argmax(axis=1).astype(np.int64)


def knn_accuracy(
    train: Any, labels: Any, queries: Any, truth: Any, *, k: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of the classifier.

    For top-5 a class of equal votes counts as placed behind: ties are against us.
    """
    votes = knn_votes(train, labels, queries, k=k, temperature=temperature)
    right = np.asarray(truth, np.int64)
    if right.shape != (len(votes),):
        raise ShapeError(f"{len(votes)} queries came with labels of shape {list(right.shape)}")
    padded = np.pad(votes, ((0, 0), (0, max(0, right.max() + 1 - votes.shape[1]))))
    own = padded[np.arange(len(right)), right][:, None]
    rank = (padded >= own).sum(axis=1)  # the class itself is one of them
    found = (own[:, 0] > 0) & (rank <= 5)
    return {
        "top1": float((padded.argmax(axis=1) == right).mean()),
        "top5": float(found.mean()),
    }


def knn_votes(
    train: Any,
    labels: Any,
    queries: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_self_out: bool = False,
) -> npt.NDArray[np.float64]:
    """The votes float64[Q, classes]; see ``knn_predict``. Each row sums to 1."""
    known, asked = _units(train), _units(queries)
    classes = np.asarray(labels, np.int64)
    if classes.shape != (len(known),) or known.shape[1] != asked.shape[1]:
        raise ShapeError(
            f"train {list(known.shape)}, labels {list(classes.shape)} and queries "
            f"{list(asked.shape)} do not fit each other"
        )
    if k < 1 or temperature <= 0 or (len(classes) and classes.min() < 0):
        raise ConfigError("k is at least 1, temperature above 0, labels at least 0")
    k = min(k, len(known) - leave_self_out)
    votes = np.zeros((len(asked), int(classes.max()) + 1))
    for start in range(0, len(asked), BLOCK):
        cosines = asked[start : start + BLOCK] @ known.T
        rows = np.arange(len(cosines))
        if leave_self_out:
            cosines[rows, start + rows] = -np.inf
        near = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        cosine = np.take_along_axis(cosines, near, axis=1)
        weight = np.exp((cosine - cosine[:, :1]) / temperature)
        np.add.at(votes, (start + rows[:, None], classes[near]), weight)
    return votes / votes.sum(axis=1, keepdims=True)


def _units(vectors: Any) -> npt.NDArray[np.float64]:
    array = np.asarray(vectors, np.float64)
    if array.ndim != 2:
        raise ShapeError(f"vectors are [N, E], got {list(array.shape)}")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ConfigError("a vector is not finite or is zero")
    return array / norms
