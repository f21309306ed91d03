"""Fits what is kept beside a model about its searches, on photos that it was not trained on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.evaluate.caption_sets import (
    CaptionPack,
    Embedded,
    captioned,
    embed_pack,
)
from fourm_lite.evaluate.retrieval import Reranking, best_given, fits_of
from fourm_lite.photos.records import CAPTIONS, read_caption_list
from fourm_lite.progress import StageProgress
from fourm_lite.search.calibration.answer_features import Vocabulary, stems
from fourm_lite.search.calibration.captions import (
    Transferable,
    foreign_texts,
    lessons_of,
    median_and_deviation,
)
from fourm_lite.search.index.index import Index
from fourm_lite.search.search_file import DIRECTIONS, FittedSearch, Given, Weights
from fourm_lite.search.spaces import ModelSpace

TRAIN, DIGITS, MOST = "train", 4, 5000
"""Digits of a weight, and the queries that weights are fitted on, as this is done once a model."""


def fit_model(
    space: ModelSpace,
    folder: str | Path,
    split: str,
    *,
    depth: int = 100,
    batch_size: int = 32,
    progress: StageProgress | None = None,
) -> FittedSearch:
    """Weights of the reranker for both directions, and what captions are best predicted from.

    Args:
        space: the model, as galleries of users are embedded
        folder: holds captions.jsonl
        split: photos that neither the model nor its tokenizer was trained on
        depth: how many of the first hits are reranked
        batch_size: items embedded together
        progress: called with the stage, and what is done of how much
    """
    data = embed_pack(
        CaptionPack.read(folder, split), space, batch_size=batch_size, progress=progress
    )
    found, log_p = fits_of(data, Reranking(depth), progress, most=MOST)
    calibration = _confidence(data, folder)
    weights: dict[Given, dict[str, Weights]] = {
        given: dict(zip(DIRECTIONS, (_short(fit.weights) for fit in both), strict=True))
        for given, both in found.items()
    }
    return FittedSearch(
        space.target.name, _words(data, folder), weights, best_given(log_p), calibration.to_dict()
    )


def _confidence(data: Embedded, folder: str | Path) -> Transferable:
    """The confidence of answers, fitted on an index of the photos that is made for it.

    Words count as known that the split "train" has often enough for a gallery of this size; where
    there is none, those of the other photos of the split.
    """
    names, space = [photo.id for photo in data.pack.photos], data.space
    with tempfile.TemporaryDirectory() as place:
        index = Index.create(Path(place) / "idx", space=space.name, width=space.width)
        index.add(names, data.images, codes=data.codes)
        asked = captioned(index, space, folder, data.pack.split)
        others = [
            frozenset().union(*map(stems, record.captions))
            for record in read_caption_list(Path(folder).expanduser() / CAPTIONS)
            if record.captions and record.split == TRAIN != data.pack.split
        ]
        if others:
            asked = replace(asked, vocabulary=Vocabulary.of(others, gallery=len(names)))
            asked = replace(asked, questions=[replace(q, own=frozenset()) for q in asked.questions])
        lessons, foreign = lessons_of(index, space, asked, foreign_texts())
    whole = lessons.fit(np.ones(len(lessons.right), bool))
    return Transferable(whole, asked.vocabulary, median_and_deviation(foreign))


def _words(data: Embedded, folder: str | Path) -> str:
    pack = data.pack
    return (
        f"{len(pack.photos)} photos and {len(pack.captions)} captions of the split {pack.split!r} "
        f"of {Path(folder).resolve().name}"
    )


def _short(weights: Weights) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in weights.items() if value}


def told(learnt: FittedSearch) -> dict[str, Any]:
    """What was fitted, for people."""
    by = {
        f"{given} {direction}": ", ".join(f"{n} {w:g}" for n, w in weights.items())
        for given, directions in learnt.weights.items()
        for direction, weights in directions.items()
    }
    return {"target": learnt.target, "fitted_on": learnt.fitted_on, "given": learnt.given, **by}
