"""What the grown model can do with its new modality, on held-out photos, beside the baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.add_embedding.extraction import Vectors
from fourm_lite.add_embedding.tuning import Sources
from fourm_lite.data.linear import ridge_from_words
from fourm_lite.evaluate.caption_sets import CaptionPack, caption_items
from fourm_lite.evaluate.tokenizer_report import code_use, neighbours_kept
from fourm_lite.metrics.ranking import caption_retrieval
from fourm_lite.progress import StageProgress, batches, of_stage
from fourm_lite.search.spaces import PICTURE, ModelSpace
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.unit import Floats, unit

MEASURES = ("R@1", "R@5", "R@10", "median_rank")
MAX_PICTURES = 200
BATCH = 32


def model_metrics(
    space: ModelSpace, sources: Sources, train: Vectors, held_out: Vectors, tell: StageProgress
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
        pack = CaptionPack.of([held_out.records[i] for i in chosen], "held_out")
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
        found["pixels"] = _pixel_metrics(space, held_out, galleries["tokenized"], tell)
    return found


def _model_queries(space: ModelSpace, pack: CaptionPack, tell: StageProgress) -> Floats:
    items, _ = caption_items(pack, space)
    progress = of_stage(tell, "measuring captions")
    return space.encode_query(items, batch_size=BATCH, progress=progress)


def _ridge_queries(train: Vectors, pack: CaptionPack, mean: Any) -> Floats:
    known = CaptionPack.of(train.records, "train")
    targets = train.values[known.owner] - mean
    return unit(ridge_from_words(known.captions, targets, pack.captions))


def _measured(queries: Floats, gallery: Floats, pack: CaptionPack) -> dict[str, float]:
    report = caption_retrieval(queries, gallery, pack.owner, draws=1)["text_to_image"]
    return {name: round(float(report[name]), 4) for name in MEASURES}


def _pixel_metrics(
    space: ModelSpace, held_out: Vectors, made: Floats, tell: StageProgress
) -> dict[str, float]:
    """Centred cosine of what the model reads from pixels, and of the tokenizer's own bound."""
    count = min(MAX_PICTURES, len(held_out.records))
    mean = space.tokenizer.input_mean.numpy()
    raw, bound = (unit(v[:count] - mean) for v in (held_out.values, made))
    parts = []
    for part in batches(held_out.records[:count], BATCH, of_stage(tell, "measuring pixels")):
        parts.append(space.encode_query([{PICTURE: r.image} for r in part], batch_size=BATCH))
    seen = unit(np.concatenate(parts))
    return {
        "cosine_centred": round(float((seen * raw).sum(axis=1).mean()), 4),
        "cosine_centred_of_tokenizer": round(float((bound * raw).sum(axis=1).mean()), 4),
        "photos": count,
    }


_BATCH = 512


@torch.no_grad()
def tokenized(tokenizer: VQTokenizer, values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Codes int64[N, L] and reconstructed vectors float32[N, E] of raw vectors."""
    codes, made = [], []
    for start in range(0, len(values), _BATCH):
        part = torch.from_numpy(np.ascontiguousarray(values[start : start + _BATCH]))
        tokens = tokenizer.tokenize(part)
        codes.append(tokens.numpy())
        made.append(tokenizer.detokenize(tokens).float().numpy())
    return np.concatenate(codes).astype(np.int64), np.concatenate(made)


def tokenizer_metrics(tokenizer: VQTokenizer, train: Floats, held_out: Floats) -> dict[str, float]:
    """The figures of a tokenizer; all but the use of the codes are of held-out photos.

    Units:
        cosine, cosine_centred: mean between raw and reconstructed vectors
        codes_used: share of the entries that training photos use
        perplexity: mean over the code books, at most their size
        neighbours_kept: share of the 10 nearest photos that raw and reconstructed vectors agree on
        nearest_R@1, nearest_R@10: how often the raw query finds its nearest other photo in the
            gallery of reconstructed vectors; the raw gallery gives 1
        own_photo_R@1: how often a raw vector finds its own reconstruction
    """
    mean = tokenizer.input_mean.numpy()
    codes, _ = tokenized(tokenizer, train)
    _, made = tokenized(tokenizer, held_out)
    raw, back = unit(held_out - mean), unit(made - mean)
    use = [code_use(column, tokenizer.vocab_size) for column in codes.T]
    nearest, mixed = _without_self(raw @ raw.T).argmax(axis=1), _without_self(raw @ back.T)
    ranks = (mixed > mixed[np.arange(len(raw)), nearest][:, None]).sum(axis=1)
    found = {
        "cosine": float((unit(held_out) * unit(made)).sum(axis=1).mean()),
        "cosine_centred": float((raw * back).sum(axis=1).mean()),
        **{name: float(np.mean([one[name] for one in use])) for name in use[0]},
        "neighbours_kept": neighbours_kept(back, raw),
        "nearest_R@1": float((ranks < 1).mean()),
        "nearest_R@10": float((ranks < 10).mean()),
        "own_photo_R@1": float(((raw @ back.T).argmax(axis=1) == np.arange(len(raw))).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _without_self(scores: Floats) -> Floats:
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    return scores
