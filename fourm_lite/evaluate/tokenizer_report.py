"""How much of a value its tokens keep: every tokenizer of a model on photos that it has not seen.

The measures are those of `any2any`, between a value and what its own tokens decode to, so that the
two tables can be read side by side: this one is the bound of that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.evaluate.any_to_any import LESS_IS_BETTER, TargetMeasures, shaped
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.evaluate.references import References, Teachers, read_references, roles
from fourm_lite.metrics.generation import Measured
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.tokenizers import places
from fourm_lite.progress import StageProgress
from fourm_lite.unit import unit

NEIGHBOURS = 10


def evaluate_tokenizers(
    pipe: FourMPipeline,
    folder: str | Path,
    split: str,
    teachers: Teachers,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """What the tokenizers of a model keep of photos, and how they use their codes.

    Args:
        pipe: a model with its tokenizers
        folder: holds captions.jsonl
        split: which of its photos
        teachers: who says what a photo is, for class maps, embeddings and feature maps
        limit: at most so many photos, drawn evenly
        batch_size: photos at once
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Returns:
        "rows": one a tokenizer: its measures with intervals and the majority's value, the share of
        codes in use, their perplexity; of embeddings also how many neighbours stay; "protocol"
    """
    photos = CaptionPack.read(folder, split).subsample(limit)
    known = read_references(photos, pipe, teachers, batch_size=batch_size)
    judge = TargetMeasures.of(known, pipe)
    rows = []
    todo = [(role, entry) for role, entry in _judged(pipe) if role in known.values]
    for number, (role, entry) in enumerate(todo):
        if progress is not None:
            progress(entry.name, number, len(todo))
        tokens = _tokens(pipe, known, role, entry, batch_size)
        rows.append(_row(pipe, judge, role, entry, tokens, draws))
    protocol = {
        "split": split,
        "photos": len(known),
        "majority": "one value for all photos, from the measured photos' own means",
        "interval": f"95% bootstrap, {draws} draws of photos",
        "codes": "of all tokens of these photos",
    }
    return {"rows": rows, "protocol": {**protocol, **(facts or {})}}


def _judged(pipe: FourMPipeline) -> list[tuple[str, Modality]]:
    entries = roles(pipe.model.config.inputs, pipe)
    return [(role, e) for role, e in entries.items() if e.kind == "grid" and pipe.tokenizers.has(e)]


def _tokens(
    pipe: FourMPipeline, known: References, role: str, entry: Modality, batch_size: int
) -> torch.Tensor:
    """Tokens of all photos: int64[N, L]."""
    parts = []
    for start in range(0, len(known), batch_size):
        rows = range(start, min(start + batch_size, len(known)))
        batch = pipe.read([known.item(row, (role,), pipe) for row in rows])
        parts.append(batch[entry.name].value.cpu())
    return torch.cat(parts)


def _row(
    pipe: FourMPipeline,
    judge: TargetMeasures,
    role: str,
    entry: Modality,
    tokens: torch.Tensor,
    draws: int,
) -> dict[str, Any]:
    found = _decoded(pipe, role, entry, tokens)
    majority = judge(role, judge.majority(role))
    measured = {
        name: _figure(name, m, majority[name].value, draws)
        for name, m in judge(role, found).items()
    }
    row = {
        "modality": entry.name,
        "tokenizer": entry.tokenizer,
        "tokens": tokens.shape[1],
        "codes": entry.vocab_size,
        "measures": measured,
        **code_use(tokens.numpy(), entry.vocab_size or 0),
    }
    if role == "embedding":
        raw = judge.known.values["embedding"]
        mean = raw.mean(axis=0)
        row["neighbours_kept"] = neighbours_kept(unit(found - mean), unit(raw - mean))
    return row


def _figure(name: str, measured: Measured, majority: float, draws: int) -> dict[str, Any]:
    return {
        "value": round(measured.value, 6),
        "interval": measured.interval(draws=draws),
        "majority": round(majority, 6),
        "less_is_better": name in LESS_IS_BETTER,
    }


@torch.inference_mode()
def _decoded(pipe: FourMPipeline, role: str, entry: Modality, tokens: torch.Tensor) -> Any:
    """What tokens decode to, in the form that the role is compared in."""
    tokenizer = pipe.tokenizers.vq(entry)
    parts = []
    for some in tokens.to(pipe.model.device).split(32):
        latents = tokenizer.lookup(some, grid=places(entry, tokenizer))
        flat = tokenizer.decode(latents).float().flatten(1).cpu()
        parts.append(shaped(flat, tokenizer.config.n_channels, role))
    return np.concatenate(parts)


def code_use(tokens: npt.NDArray[Any], vocab_size: int) -> dict[str, float]:
    """The share of codes that occur, and the perplexity of their distribution.

    With several positions that have codebooks of their own, tokens are counted as one vocabulary.

    Shapes:
        tokens: int[N, L]
    """
    counts = np.bincount(tokens.reshape(-1), minlength=vocab_size)
    shares = counts[counts > 0] / counts.sum()
    return {
        "codes_used": round(float((counts > 0).mean()), 6),
        "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 3),
    }


def neighbours_kept(found: Any, right: Any, k: int = NEIGHBOURS) -> float:
    """The share of each vector's k nearest others that decoded vectors find too.

    Shapes:
        found, right: float[N, E], unit length
    """
    k = min(k, len(right) - 1)
    one, two = (_nearest(np.asarray(x, np.float64), k) for x in (found, right))
    shared = [len(set(a) & set(b)) for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    return round(float(np.mean(shared)) / k, 6)


def _nearest(vectors: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
