"""Measures of a classifier: accuracy with its interval, each class, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.io.files import replacing
from fourm_lite.metrics.measures import interval
from fourm_lite.unit import lengths, unit_doubles

Ints = npt.NDArray[np.int64]
CELL = 36


def classification_report(
    predicted: Any,
    truth: Any,
    classes: Sequence[str],
    *,
    protocol: Mapping[str, Any] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, its bootstrap interval over photos, and a table of classes, as JSON values.

    Shapes:
        predicted: int[N], or int[T, N] of T repetitions on the same photos, which are averaged
        truth: int[N]
    Returns:
        ``{"accuracy", "interval", "per_class": {name: accuracy or None}, "table": {name:
        {"precision", "recall", "f1", "photos"}}, "balanced_accuracy", "confusion", "protocol"}``
    """
    right = np.asarray(truth, np.int64)
    runs = np.atleast_2d(np.asarray(predicted, np.int64))
    if runs.shape[1:] != right.shape or not len(right):
        raise ShapeError(f"{list(right.shape)} labels came with answers {list(runs.shape)}")
    hits = (runs == right).mean(axis=0)
    matrix = np.mean([confusion(run, right, len(classes)) for run in runs], axis=0)
    table = {name: _row(matrix, i) for i, name in enumerate(classes)}
    found = interval(hits, draws=draws, seed=seed)
    recalls = [row["recall"] for row in table.values() if row["recall"] is not None]
    return {
        "accuracy": float(hits.mean()),
        "interval": found.to_list(),
        "balanced_accuracy": float(np.mean(recalls)),
        "per_class": {name: row["recall"] for name, row in table.items()},
        "table": table,
        "confusion": matrix.tolist(),
        "protocol": {
            "test_photos": len(right),
            "repetitions": len(runs),
            "interval": f"95% bootstrap, {draws} draws of photos, seed {seed}",
            "ties": "the smaller class number wins",
            **(protocol or {}),
        },
    }


def confusion(predicted: Ints, truth: Ints, count: int) -> npt.NDArray[np.float64]:
    """Photos of a class (row) that were given a class (column): float64[K, K]."""
    matrix = np.zeros((count, count))
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def _row(matrix: npt.NDArray[np.float64], number: int) -> dict[str, Any]:
    hit, own, said = matrix[number, number], matrix[number].sum(), matrix[:, number].sum()
    recall = float(hit / own) if own else None
    precision = float(hit / said) if said else None
    both = (own + said) or 1.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": float(2 * hit / both),
        "photos": int(own),
    }


def table_csv(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of classes as comma-separated values; commas in names are quoted."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", "photos", "precision", "recall", "f1"])
    for name, row in table.items():
        figures = [row[key] for key in ("precision", "recall", "f1")]
        shown = ["" if f is None else f"{f:.4f}" for f in figures]
        writer.writerow([name, row["photos"], *shown])
    return out.getvalue()


def draw_confusion(matrix: Any, classes: Sequence[str], path: str | Path) -> Path:
    """The confusion matrix as a PNG: rows are the truth, darker is a larger share of the row."""
    from PIL import Image, ImageDraw

    counts = np.asarray(matrix, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = 24 + 7 * max(map(len, classes))
    cell = CELL if len(classes) <= 30 else max(4, 1080 // len(classes))
    side = cell * len(classes)
    image = Image.new("RGB", (left + side + 16, left + side + 16), "white")
    pen = ImageDraw.Draw(image)
    for i, name in enumerate(classes):
        middle = left + i * cell + cell // 2
        if cell >= 12:
            pen.text((left - 8, middle), name, fill="black", anchor="rm")
            _write_upright(image, name, middle, left - 8)
        for j in range(len(classes)):
            _draw_cell(pen, left + j * cell, left + i * cell, cell, counts[i, j], shares[i, j])
    pen.text((8, 8), "rows: truth, columns: answer", fill="black")
    target = Path(path)
    with replacing(target) as draft:
        image.save(draft, "PNG")
    return target


def _draw_cell(pen: Any, x: int, y: int, cell: int, count: float, share: float) -> None:
    fill = tuple(round(255 - share * (255 - c)) for c in (31, 111, 180))
    pen.rectangle([x, y, x + cell - 1, y + cell - 1], fill=fill)
    if count and cell >= 24:
        colour = "white" if share > 0.5 else "black"
        pen.text((x + cell / 2, y + cell / 2), f"{count:.4g}", fill=colour, anchor="mm")


def _write_upright(image: Any, text: str, x: int, bottom: int) -> None:
    """Writes a column's name from bottom to top."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (7 * len(text) + 4, 14), "white")
    ImageDraw.Draw(strip).text((0, 7), text, fill="black", anchor="lm")
    turned = strip.rotate(90, expand=True)
    image.paste(turned, (x - 7, bottom - turned.height))


Floats = npt.NDArray[np.float64]
RANGE = (1e-4, 1e4)
_HALVINGS = 60


def best_temperature(logits: Any, truth: Any) -> float:
    """The T in 1e-4..1e4 for which softmax(logits / T) gives the right classes the least loss.

    The loss is convex in 1 / T. Logits that tell nothing end at the upper bound: all classes equal.

    Shapes:
        logits: float[N, C]; truth: int[N]
    Source:
        On Calibration of Modern Neural Networks (Guo et al. 2017), section 4.2
    """
    scores, right = _checked(logits, truth)
    own = scores[np.arange(len(right)), right]
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        slope = float(((_softmax(scores * middle) * scores).sum(axis=1) - own).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def log_loss(logits: Any, truth: Any) -> float:
    """Mean -log p of the right classes, in nats; log C is a guess.

    Shapes:
        logits: float[N, C]; truth: int[N]
    """
    scores, right = _checked(logits, truth)
    return float(-np.log(_softmax(scores)[np.arange(len(right)), right] + 1e-300).mean())


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _checked(logits: Any, truth: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
    scores, right = np.asarray(logits, np.float64), np.asarray(truth, np.int64)
    if scores.ndim != 2 or right.shape != scores.shape[:1] or not len(right):
        raise ShapeError(
            f"expected logits [N, C] and labels [N], got {scores.shape}, {right.shape}"
        )
    return scores, right


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
    found = lengths(array)
    if not np.isfinite(found).all() or not found.all():
        raise ConfigError("a vector is not finite or is zero")
    return unit_doubles(array)
