"""What the grown model can do with its new modality, on held-out photos, beside the baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from fourm_lite.data.word_ridge import ridge_from_words
from fourm_lite.evaluation.retrieval import caption_retrieval
from fourm_lite.growth.figures import tokenized, unit
from fourm_lite.growth.photos import Tell
from fourm_lite.growth.tuning import Sources
from fourm_lite.growth.vectors import Floats, Vectors
from fourm_lite.search.packs import CaptionPack, caption_items
from fourm_lite.search.spaces import PICTURE, ModelSpace

MEASURES = ("R@1", "R@5", "R@10", "median_rank")
MAX_PICTURES = 200
BATCH = 32


def model_figures(
    space: ModelSpace, sources: Sources, train: Vectors, held_out: Vectors, tell: Tell
) -> dict[str, Any]:
    """Retrieval by captions in raw and tokenized galleries, and how near pixels come.

    "raw" galleries hold the network's own vectors, "tokenized" ones what is left of them after the
    tokenizer. All cosines are centred by the tokenizer's mean.
    """
    mean = space.tokenizer.input_mean.numpy()
    galleries = {
        "raw": held_out.values,
        "tokenized": tokenized(space.tokenizer, held_out.values)[1],
    }
    found: dict[str, Any] = {}
    chosen = np.array([i for i, r in enumerate(held_out.records) if r.captions], np.int64)
    if sources.caption is not None and len(chosen) > 1:
        pack = _pack(held_out, chosen)
        images = {name: unit(values[chosen] - mean) for name, values in galleries.items()}
        queries = {
            "model": _model_queries(space, pack, tell),
            "ridge": _ridge_queries(train, pack, mean),
        }
        found["caption"] = {
            f"{who}, {name} gallery": _measured(vectors, gallery, pack)
            for who, vectors in queries.items()
            for name, gallery in images.items()
        }
        found["queries"], found["photos"] = len(pack.captions), len(chosen)
    if sources.pixels is not None:
        found["pixels"] = _pixel_figures(space, held_out, galleries["tokenized"], tell)
    return found


def _pack(vectors: Vectors, chosen: Any) -> CaptionPack:
    photos = tuple(vectors.records[i] for i in chosen)
    captions = tuple(text for photo in photos for text in photo.captions)
    owner = np.array([i for i, photo in enumerate(photos) for _ in photo.captions], np.int64)
    return CaptionPack(photos, captions, owner, "held_out")


def _model_queries(space: ModelSpace, pack: CaptionPack, tell: Tell) -> Floats:
    items, _ = caption_items(pack, space)

    def told(done: int, total: int) -> None:
        tell("measuring captions", done, total)

    return space.embed_items(items, batch_size=BATCH, progress=told)


def _ridge_queries(train: Vectors, pack: CaptionPack, mean: Any) -> Floats:
    owners = [i for i, r in enumerate(train.records) for _ in r.captions]
    captions = [text for r in train.records for text in r.captions]
    return unit(ridge_from_words(captions, train.values[owners] - mean, pack.captions))


def _measured(queries: Floats, gallery: Floats, pack: CaptionPack) -> dict[str, float]:
    report = caption_retrieval(queries, gallery, pack.owner, draws=1)["text_to_image"]
    return {name: round(float(report[name]), 4) for name in MEASURES}


def _pixel_figures(
    space: ModelSpace, held_out: Vectors, made: Floats, tell: Tell
) -> dict[str, float]:
    """Centred cosine of what the model reads from pixels, and of the tokenizer's own bound."""
    count = min(MAX_PICTURES, len(held_out.records))
    mean = space.tokenizer.input_mean.numpy()
    raw, bound = (unit(v[:count] - mean) for v in (held_out.values, made))
    parts = []
    for start in range(0, count, BATCH):
        part = held_out.records[start : start + min(BATCH, count - start)]
        items = [{PICTURE: r.image} for r in part]
        parts.append(space.embed_items(items, batch_size=BATCH))
        tell("measuring pixels", start + len(part), count)
    seen = unit(np.concatenate(parts))
    return {
        "cosine_centred": round(float((seen * raw).sum(axis=1).mean()), 4),
        "cosine_centred_of_tokenizer": round(float((bound * raw).sum(axis=1).mean()), 4),
        "photos": count,
    }
