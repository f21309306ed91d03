"""Retrieval protocols: captions and photos in both directions, and same-class images (GPR1200).

Scores are cosines, computed a block of queries at a time; every report names its protocol and
sizes, so that a figure cannot be quoted without them. The rules for several right answers and for
ties are those of ``metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics import measures as metrics
from fourm_lite.metrics.measures import interval
from fourm_lite.unit import Floats, lengths, unit

Ints = npt.NDArray[np.int64]
Rescore = Callable[[int, Ints], Any]
"""(query number, candidate numbers [K]) -> scores [K], larger is better."""

BLOCK = 256
KS = (1, 5, 10)


def caption_retrieval(
    texts: Any,
    images: Any,
    owner: Any,
    *,
    protocol: Mapping[str, Any] | None = None,
    rerank: tuple[int, Rescore, Rescore] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Text to image and image to text, as the JSON that ``evaluate retrieval`` writes.

    Text to image: each caption is a query, its photo the one right answer among all photos. Image
    to text: each photo is a query, any of its captions is right among all captions.

    Shapes:
        texts: float[T, E]
        images: float[G, E]
        owner: int[T], the photo of each caption; every photo owns at least one
    Args:
        texts: vectors of the captions
        images: vectors of the photos
        owner: which photo a caption belongs to
        protocol: facts to write into the report: split, model, gallery, steps
        rerank: (depth, rescore for text to image, rescore for image to text)
        draws: bootstrap draws; photos are drawn with all of their captions
        seed: of the bootstrap

    Returns:
        ``{"text_to_image": {"R@1", "R@5", "R@10", "median_rank", "MRR", "nDCG@10", "mAP",
        "interval"}, "image_to_text": {...}, "protocol": {...}}``
    """
    text, image = directions(texts), directions(images)
    photo = _check_owner(owner, len(text), len(image))
    here, there = (
        (None, None) if rerank is None else ((rerank[0], rerank[1]), (rerank[0], rerank[2]))
    )
    forward = measure(text, image, lambda rows: photo[rows][:, None] == np.arange(len(image)), here)
    back = measure(image, text, lambda rows: rows[:, None] == photo, there)
    facts = {
        "queries_text": len(text),
        "queries_image": len(image),
        "captions_per_image": round(len(text) / len(image), 4),
        "right": "text_to_image: the caption's photo; image_to_text: any caption of the photo",
        "ties": "a right answer stands behind every wrong one of equal score",
        "score": "cosine",
        "rerank_depth": None if rerank is None else rerank[0],
        "interval": f"95% bootstrap, {draws} draws of photos, seed {seed}",
    }
    return {
        "text_to_image": _report(forward, photo, draws, seed),
        "image_to_text": _report(back, None, draws, seed),
        "protocol": {**facts, **(protocol or {})},
    }


def same_class_retrieval(
    vectors: Any,
    labels: Any,
    *,
    protocol: Mapping[str, Any] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The GPR1200 protocol: every image a query, images of its class right, itself left out.

    Shapes:
        vectors: float[N, E]
        labels: N labels of any kind; each at least twice
    Source:
        Schall et al. 2022, GPR1200: mAP over all queries
    """
    units = directions(vectors)
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    if classes.shape != (len(units),):
        raise ShapeError(f"{len(units)} vectors came with labels of shape {list(classes.shape)}")
    alone = names[np.bincount(classes) < 2]
    if len(alone):
        raise ConfigError(
            f"{len(alone)} classes have one image only, such as {alone[0]!r}; "
            "a query needs another image of its class, so leave them out and say so"
        )

    def right(rows: Ints) -> npt.NDArray[np.bool_]:
        same = classes[rows][:, None] == classes
        same[np.arange(len(rows)), rows] = False
        return same

    measured = measure(units, units, right, leave_self_out=True)
    facts = {
        "protocol": "GPR1200: every image a query, same class right, the query left out",
        "images": len(units),
        "classes": len(names),
        "ties": "AP and nDCG: equal scores are one group; ranks: against us",
        "interval": f"95% bootstrap, {draws} draws of queries, seed {seed}",
    }
    return {**_report(measured, None, draws, seed), "protocol": {**facts, **(protocol or {})}}


def measure(
    queries: Floats,
    gallery: Floats,
    right: Callable[[Ints], npt.NDArray[np.bool_]],
    rerank: tuple[int, Rescore] | None = None,
    *,
    leave_self_out: bool = False,
) -> dict[str, npt.NDArray[np.float64]]:
    """Rank, nDCG@10 and average precision of every query, in bounded memory.

    Shapes:
        queries: float32[Q, E], gallery: float32[G, E], unit length
        right: query numbers int[b] -> bool[b, G]
        returns: "rank", "nDCG@10", "AP", each float64[Q]
    """
    parts: list[tuple[Any, Any, Any]] = []
    for rows, scores in score_blocks(queries, gallery, leave_self_out=leave_self_out):
        if rerank is not None:
            scores = reranked(scores, rows, *rerank)
        truth = right(rows)
        ranks = metrics.first_ranks(scores, truth)
        gains = metrics.ndcg(scores, truth, 10)
        parts.append((ranks, gains, metrics.average_precisions(scores, truth)))
    columns = [np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True)]
    return dict(zip(("rank", "nDCG@10", "AP"), columns, strict=True))


def score_blocks(
    queries: Floats, gallery: Floats, *, leave_self_out: bool = False
) -> Iterator[tuple[Ints, Floats]]:
    """Query numbers int64[b] with their cosines float32[b, G], block by block."""
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ gallery.T
        rows = np.arange(start, start + len(scores))
        if leave_self_out:
            scores[np.arange(len(rows)), rows] = -np.inf
        yield rows, scores


def reranked(scores: Floats, rows: Ints, depth: int, rescore: Rescore) -> Floats:
    """Scores whose order is: the first ``depth`` by ``rescore``, then the rest as they were.

    Equal new scores stay tied, so the rule for ties holds after reranking too.
    """
    out = scores.copy()
    for place, row in enumerate(rows):
        # Stable over the negated scores: of equal cosines the earlier candidate is reranked.
        head = np.argsort(-scores[place], kind="stable")[:depth]
        new = np.asarray(rescore(int(row), head), np.float64)
        if new.shape != head.shape or np.isnan(new).any():
            raise ShapeError(f"rescore gave {list(new.shape)} or no numbers for {len(head)}")
        # Dense ranks put every reranked candidate above 1, the largest cosine.
        _, dense = np.unique(new, return_inverse=True)
        out[place, head] = 2.0 + dense
    return out


def curve(
    points: Mapping[Any, Mapping[str, Any]], measures: Sequence[str] = ("R@1", "R@5", "R@10")
) -> dict[str, list[tuple[float, ...]]]:
    """Reports by setting (steps, rerank depth) as lines to plot.

    Returns:
        measure -> (setting, value), with the value's interval where the report has one
    """
    return {
        name: [
            (float(setting), float(report[name]), *report.get("interval", {}).get(name, ()))
            for setting, report in points.items()
        ]
        for name in measures
    }


def directions(vectors: Any) -> Floats:
    """The vectors float32[N, E] with unit length.

    Raises:
        ShapeError: not [N, E]
        ConfigError: a vector is zero or not finite
    """
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or not len(array):
        raise ShapeError(f"vectors are [N, E] with N of at least 1, got {list(array.shape)}")
    norms = lengths(array)[:, 0]
    if not np.isfinite(norms).all() or not norms.all():
        bad = int(np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0])
        raise ConfigError(f"vector {bad} is zero or not finite; it has no direction")
    return unit(array)


def _check_owner(owner: Any, texts: int, images: int) -> Ints:
    photo = np.asarray(owner)
    if photo.shape != (texts,) or photo.dtype.kind not in "iu":
        raise ShapeError(f"owner is one photo number a caption: int[{texts}]")
    counts = np.bincount(photo, minlength=images) if photo.min() >= 0 else np.zeros(0)
    if len(counts) != images or not counts.all():
        raise ConfigError(
            f"owner numbers photos 0..{images - 1}, each with at least one caption; "
            f"got {photo.min()}..{photo.max()} with {int((counts == 0).sum())} photos without"
        )
    return photo.astype(np.int64)


def _report(
    measured: Mapping[str, npt.NDArray[np.float64]], groups: Any, draws: int, seed: int
) -> dict[str, Any]:
    ranks = measured["rank"]
    told: dict[str, Any] = metrics.summary(ranks, KS)
    told["nDCG@10"] = float(measured["nDCG@10"].mean())
    told["mAP"] = float(measured["AP"].mean())
    each = {f"R@{k}": metrics.recall_at(ranks, k) for k in KS}
    each |= {"MRR": metrics.reciprocal_ranks(ranks)}
    each |= {"nDCG@10": measured["nDCG@10"], "mAP": measured["AP"]}
    told["interval"] = {
        name: interval(values, groups=groups, draws=draws, seed=seed).to_list()
        for name, values in each.items()
    }
    median = interval(ranks, groups=groups, statistic=np.median, draws=draws, seed=seed)
    told["interval"]["median_rank"] = median.to_list()
    return told
