"""The numbers that `global_tokens` writes: word vectors by ridge regression, and the read-out.

Three regressions over the training photos, no gradient: word counts to the latents of the global
embedding (each word gets a vector), pooled image features to these latents, and both kinds of
pooled context to them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.data.linear import ridge, solve_ridge
from fourm_lite.data.shards import normalized
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.records import Record
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer
from fourm_lite.training.initial.global_tokens import ReadOut, pooled_context, start_read_out
from fourm_lite.training.initial.read_out import code_parts


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How much data the regressions see.

    Units:
        photos, captions: of the training split; penalty: of the ridge regressions
        word_norm: mean length of the word vectors in the caption table, 0 keeps the table
        sharpness, quiet: see `ReadOut`
    """

    target: str
    pixels: str = "rgb@224"
    caption: str = "caption"
    photos: int = 1000
    captions: int = 5000
    penalty: float = 3.0
    word_norm: float = 150.0
    sharpness: float = 0.2
    quiet: float = 0.1


def parts_of(tokenizer: VQTokenizer, embeddings: Tensor) -> Tensor:
    """Latents without the constant channels: float[N, C] -> float[N, heads * d]."""
    heads = tokenizer.config.num_codebooks
    with torch.no_grad():
        latents = tokenizer.latents(embeddings).flatten(1)
    return latents.view(len(latents), heads, -1)[..., :-1].flatten(1)


def word_vectors(
    captions: Sequence[Sequence[int]], goals: Tensor, vocab_size: int, penalty: float
) -> Tensor:
    """A vector for each word, such that a caption's weighted sum comes near its photo.

    Shapes:
        goals: float[N, k], one for each caption; returns float[vocab_size, k], 0 for rare words
    """
    present = torch.zeros(len(captions), vocab_size)
    for row, ids in zip(present, captions, strict=True):
        row[list(ids)] = 1.0
    count = present.sum(dim=0)
    weight = ((len(captions) + 1) / (count + 1)).log() + 1
    used = (count >= 2).nonzero()[:, 0]
    features = F.normalize(present[:, used] * weight[used], dim=1)
    moment = features.T @ (goals - goals.mean(dim=0))
    found = solve_ridge(features.T @ features, moment, penalty)
    out = torch.zeros(vocab_size, goals.shape[1])
    out[used] = found * weight[used, None]
    return out


@torch.no_grad()
def calibrate(
    model: FourM,
    records: Sequence[Record],
    embeddings: Tensor,
    tokenizer: VQTokenizer,
    text: TextTokenizer,
    options: Calibration,
) -> None:
    """Writes word vectors and the read-out of `options.target` into a model.

    Shapes:
        embeddings: float[N, C], the teacher's, one for each record
    """
    model.eval()
    goals = parts_of(tokenizer, embeddings)
    photos = _pooled_photos(model, records[: options.photos], options.pixels)
    linear = ridge(photos, goals[: options.photos], 10.0)
    owners = [i for i, r in enumerate(records) for _ in r.captions]
    words = [text.encode(c) for r in records for c in r.captions]
    vectors = word_vectors(words, goals[owners], text.vocab_size, options.penalty)
    _write_words(model, options, _turned(vectors, linear))
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(1))
    chosen = [int(i) for i in order if records[int(i)].captions][: options.captions]
    said = _pooled_texts(model, [records[i].captions[0] for i in chosen], text, options.caption)
    x, y = torch.cat([said, photos]), torch.cat([goals[chosen], goals[: options.photos]])
    weights = torch.cat([torch.ones(len(said)), torch.full((len(photos),), 1.5)])
    joint = ridge(x, y, options.penalty, weights)
    scale = (F.pad(x, (0, 1), value=1.0) @ joint).square().mean()
    read = ReadOut(sharpness=options.sharpness, quiet=options.quiet)
    start_read_out(model, options.target, code_parts(tokenizer), joint, scale, read)


def _turned(vectors: Tensor, linear: Tensor) -> Tensor:
    """Vectors of the latents' space in the encoder's, by the rotation nearest to the linear map."""
    u, _, vh = torch.linalg.svd(linear[:-1].T, full_matrices=False)
    return vectors @ (u @ vh)


def _write_words(model: FourM, options: Calibration, vectors: Tensor) -> None:
    from fourm_lite.training.initial.start import start_words

    table = model.encoder_embeddings[options.caption].token_emb
    start_words(table, vectors, norm=options.word_norm)  # type: ignore[arg-type]


def _pooled_photos(model: FourM, records: Sequence[Record], name: str) -> Tensor:
    rows = []
    length = model.modality(name).max_tokens
    size = model.modality(name).image_size or 224
    for start in range(0, len(records), 16):
        part = records[start : start + 16]
        x = torch.stack([normalized(r.open_image().resize((size, size))) for r in part])
        batch = TokenBatch({name: Tokens.given(x, length=length)})
        rows.append(pooled_context(model, model.encode(batch)))
    return torch.cat(rows)


def _pooled_texts(
    model: FourM, texts: Sequence[str], tokenizer: TextTokenizer, name: str
) -> Tensor:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.zeros(len(texts), model.config.dim)
    for start in range(0, len(order), 64):
        index = order[start : start + 64]
        made = tokenizer.tokenize([texts[i] for i in index])
        given = Tokens.given(made.ids, made.valid, length=made.ids.shape[1])
        out[index] = pooled_context(model, model.encode(TokenBatch({name: given})))
    return out
