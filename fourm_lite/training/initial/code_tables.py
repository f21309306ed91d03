"""Codes of a map that begin as words do: as votes for what the whole photo is.

A few hundred steps teach an encoder little of what a thousand codes of edges say about a photo, and
a ridge regression from how often each occurs knows much of it at once. Its vectors are written into
the table of the codes, in the space in which the caption's words lie: blocks that read words read
these. Trained steps then start from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourm_lite.data.linear import ridge, solve_ridge
from fourm_lite.errors import ConfigError
from fourm_lite.model.fourm import FourM
from fourm_lite.training.initial.start import start_words
from fourm_lite.training.initial.token_statistics import word_vectors

_OFTEN = 8  # captions that hold a word whose vector tells of the space of words


@dataclass(frozen=True, kw_only=True)
class CodesRecipe:
    """Which codes begin so, and how long their vectors are.

    Units:
        target: the global embedding that the regressions tell; captions: the modality of words
        source: of captions with labels; the maps are those of `data`
        norms: modality of a map -> mean length of its codes' vectors
        penalty: of the regression from codes, in mean variances of how often one occurs
        word_penalty: of the one from words
    """

    target: str
    norms: Mapping[str, float]
    captions: str = "caption"
    source: str = "train"
    penalty: float = 0.1
    word_penalty: float = 3.0


def code_vectors(tokens: Tensor, goals: Tensor, vocab_size: int, penalty: float) -> Tensor:
    """A vector for each code, such that the mean over a map's codes comes near its photo.

    Shapes:
        tokens: int64[N, L]; goals: float[N, k]; returns float[vocab_size, k]
    Raises:
        ConfigError: a token is not among the codes
    """
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ConfigError(
            f"codes of 0 to {vocab_size - 1} were expected, these maps hold {int(tokens.min())} to "
            f"{int(tokens.max())}; tokenize them with the tokenizer that the model names"
        )
    share = torch.zeros(len(tokens), vocab_size)
    share.scatter_add_(1, tokens, torch.full(tokens.shape, 1 / tokens.shape[1]))
    share -= share.mean(dim=0)
    gram = share.T @ share
    moment = share.T @ (goals - goals.mean(dim=0))
    return solve_ridge(gram, moment, penalty * gram.diagonal().mean())


def space_of_words(
    table: Tensor, captions: Sequence[Sequence[int]], goals: Tensor, penalty: float
) -> Tensor:
    """The linear map from latents of the embedding to the space in which the words' vectors lie.

    Shapes:
        table: float[V, D]; goals: float[N, k], one for each caption; returns float[k, D]
    Raises:
        ConfigError: no word occurs in enough captions
    """
    vectors = word_vectors(captions, goals, len(table), penalty)
    count = torch.zeros(len(table))
    for ids in captions:
        count[list(set(ids))] += 1
    often = count >= _OFTEN
    if not often.any():
        raise ConfigError(
            f"start.codes needs words that {_OFTEN} captions or more hold, {len(captions)} "
            "captions have none"
        )
    return ridge(vectors[often], table[often], 1e-3, count[often].sqrt())[:-1]


def table_of(model: FourM, name: str) -> nn.Embedding:
    """The encoder's vectors of a modality's tokens.

    Raises:
        ConfigError: the encoder does not read the modality, or it is not one of tokens
    """
    known = model.encoder_embeddings
    table = getattr(known[name], "token_emb", None) if name in known else None
    if not isinstance(table, nn.Embedding):
        raise ConfigError(f"start.codes: the encoder has no table of tokens for {name!r}")
    return table


@torch.no_grad()
def start_features(
    linear: nn.Linear,
    vectors: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    table: nn.Embedding,
    penalty: float = 0.1,
) -> None:
    """Solves the map of foreign vectors so that each begins as the mean of its captions' words.

    Shapes:
        vectors: float[N, E]; captions: ids of the words of each caption of each of the N
    Units:
        penalty: of the regression, in mean variances of a component
    """
    rows = [[i for words in said for i in words] for said in captions]
    goals = torch.stack([table.weight[row].mean(dim=0) for row in rows])
    spread = vectors.var(dim=0).mean() * len(vectors)
    found = ridge(vectors - vectors.mean(dim=0), goals, float(penalty * spread))
    known = torch.tensor(sorted({i for row in rows for i in row}))
    size = table.weight[known].norm(dim=1).mean() / goals.norm(dim=1).mean()  # as long as a word
    linear.weight.copy_(size * found[:-1].T)
    linear.bias.copy_(size * (found[-1] - vectors.mean(dim=0) @ found[:-1]))


@torch.no_grad()
def start_codes(table: nn.Embedding, vectors: Tensor, space: Tensor, norm: float) -> None:
    """Writes vectors of latents into the encoder's table of a map, in the space of words.

    Shapes:
        vectors: float[V, k]; space: float[k, D]
    Units:
        norm: mean length of the written vectors
    """
    start_words(table, vectors @ space, norm=norm)
