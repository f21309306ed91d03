"""What is lost by tokenizing: cosine, use of the codes, neighbours, retrieval, on unseen photos."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.growth.vectors import Floats
from fourm_lite.tokenization.vqvae import VQTokenizer

NEIGHBOURS = 10
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


def tokenizer_figures(tokenizer: VQTokenizer, train: Floats, held_out: Floats) -> dict[str, float]:
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
    raw_scores, mixed = _without_self(raw @ raw.T), _without_self(raw @ back.T)
    k = min(NEIGHBOURS, len(raw) - 1)
    nearest = raw_scores.argmax(axis=1)
    ranks = (mixed > mixed[np.arange(len(raw)), nearest][:, None]).sum(axis=1)
    found = {
        "cosine": float((unit(held_out) * unit(made)).sum(axis=1).mean()),
        "cosine_centred": float((raw * back).sum(axis=1).mean()),
        **code_use(codes, tokenizer.vocab_size),
        "neighbours_kept": _overlap(raw_scores, _without_self(back @ back.T), k),
        "nearest_R@1": float((ranks < 1).mean()),
        "nearest_R@10": float((ranks < 10).mean()),
        "own_photo_R@1": float(((raw @ back.T).argmax(axis=1) == np.arange(len(raw))).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def code_use(codes: npt.NDArray[np.int64], size: int) -> dict[str, float]:
    """Share of used entries, and the perplexity of their use, over all code books."""
    shares, perplexities = [], []
    for column in codes.T:
        p = np.bincount(column, minlength=size) / len(column)
        shares.append(float((p > 0).mean()))
        perplexities.append(float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())))
    return {"codes_used": float(np.mean(shares)), "perplexity": float(np.mean(perplexities))}


def unit(vectors: Floats) -> Floats:
    """Vectors of length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled


def _without_self(scores: Floats) -> Floats:
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    return scores


def _overlap(one: Floats, other: Floats, k: int) -> float:
    first, second = (np.argsort(-s, axis=1, kind="stable")[:, :k] for s in (one, other))
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(first, second, strict=True)]
    return float(np.mean(shared)) / k
