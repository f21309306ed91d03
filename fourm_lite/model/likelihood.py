"""How likely given tokens are: log-probabilities of a target, given anything else.

A grid has two measures. *One pass* predicts all tokens at once and treats them as independent given
the rest; it costs one forward for any number of candidates. The *chain rule* reveals the tokens one
after the other in a given order and is an exact probability: over all completions it sums to one.
For a sequence the two are the same thing, and one teacher-forced pass gives it.

`joint_logits` asks for every token of several grids in one pass. Unusual: in AION-1's own `forward`
a decoder row attends uniformly to the rows of all targets together, so asking for one more target
changes the logits of the others. That is neither what it was trained with nor what generation does;
`attention="own"` asks for each target as training does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError, ShapeError, check_choice
from fourm_lite.model.fourm import Encoded, FourM
from fourm_lite.nn.attention import blocked
from fourm_lite.nn.blocks import Context

Method = Literal["one_pass", "chain"]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of candidates.

    Shapes:
        total: float32[B, K], natural logarithm of the whole candidate's probability
        count: int64[K], tokens of each candidate that were scored
    """

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-probability per token: float32[B, K]; what candidates of unlike length compare by."""
        return self.total / self.count.clamp(min=1)


@torch.inference_mode()
def score(
    model: FourM,
    target: str,
    candidates: Tensor,
    given: TokenBatch,
    *,
    valid: Tensor | None = None,
    method: Method = "one_pass",
    order: Sequence[int] | None = None,
    chunk: int = 64,
) -> Scores:
    """How likely each candidate is for each given item; the given side is encoded once.

    Args:
        model: in eval mode
        target: a modality that the model predicts
        candidates: int64[K, L]; a sequence starts with the sentinel that the decoder reads first
        given: a batch of B items, without the target
        valid: bool[K, L], False where a candidate of a sequence is padded
        method: "one_pass", or the exact "chain" rule
        order: positions in the order in which the chain reveals them; left to right by default
        chunk: candidates that are decoded at the same time

    Raises:
        ConfigError: no such method
        FourMError: the model does not predict the target
        ShapeError: candidates of another length than the modality's
    """
    check_choice("method", method, of=get_args(Method))
    entry = model.modality(target)
    model.target(target)
    candidates = candidates.to(model.device)
    encoded = model.encode(given.without(target), batch_size=given.size)
    if entry.kind == "sequence":
        valid = torch.ones_like(candidates, dtype=torch.bool) if valid is None else valid
        total = _score_sequences(model, target, candidates, valid.to(model.device), encoded, chunk)
        return Scores(total, valid.sum(dim=1) - 1)
    if candidates.ndim != 2 or candidates.shape[1] != entry.max_tokens:
        raise ShapeError(
            f"'{target}' expects candidates int64[K, {entry.max_tokens}], "
            f"got {list(candidates.shape)}"
        )
    count = torch.full_like(candidates[:, 0], entry.max_tokens)
    if method == "chain":
        positions = list(range(entry.max_tokens)) if order is None else list(order)
        if sorted(positions) != list(range(entry.max_tokens)):
            raise FourMError(f"order must name each of the {entry.max_tokens} positions once")
        return Scores(_score_chain(model, target, candidates, given, positions, chunk), count)
    log_p = grid_log_probs(model, target, encoded.context, given.size)
    index = candidates[None, ..., None].expand(given.size, -1, -1, -1)  # [B, K, L, 1]
    rows = log_p[:, None].expand(-1, candidates.shape[0], -1, -1)
    return Scores(rows.gather(3, index)[..., 0].sum(dim=-1), count)


def grid_log_probs(model: FourM, target: str, context: Context, size: int) -> Tensor:
    """Log-probabilities of all tokens of a grid, none of them known: float32[B, L, V]."""
    y = joint_states(model, context, size, [target])
    return model.logits(y, target).float().log_softmax(dim=-1)


def sequence_logits(model: FourM, target: str, ids: Tensor, context: Context) -> Tensor:
    """Teacher-forced logits: float32[B, T, V] after each of the ids int64[B, T]."""
    embedding = model.target(target)
    length = ids.shape[1]
    y = embedding.token_emb(ids) + embedding.step(0, length)
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    bias = blocked(causal, y.dtype)[None, None]
    return model.logits(model.run_decoder(y, context, bias), target).float()


def _score_sequences(
    model: FourM, target: str, ids: Tensor, valid: Tensor, encoded: Encoded, chunk: int
) -> Tensor:
    size, k = encoded.output.shape[0], ids.shape[0]
    totals = []
    for start in range(0, k, chunk):
        part, here = ids[start : start + chunk], valid[start : start + chunk]
        n = part.shape[0]
        rows = torch.arange(size, device=ids.device).repeat_interleave(n)
        logits = sequence_logits(
            model, target, part[:, :-1].repeat(size, 1), encoded.context.select(rows)
        )
        log_p = logits.log_softmax(dim=-1).gather(2, part[:, 1:].repeat(size, 1)[..., None])[..., 0]
        keep = (here[:, 1:] & here[:, :-1]).repeat(size, 1)
        totals.append((log_p * keep).sum(dim=1).view(size, n))
    return torch.cat(totals, dim=1)


def _score_chain(
    model: FourM,
    target: str,
    candidates: Tensor,
    given: TokenBatch,
    order: Sequence[int],
    chunk: int,
) -> Tensor:
    totals = []
    for start in range(0, candidates.shape[0], chunk):
        part = candidates[start : start + chunk]
        ids = part.repeat(given.size, 1)  # [B * K, L], items slow, candidates fast
        batch = given.without(target).repeat(part.shape[0])
        tokens = Tokens.wanted(model.modality(target), ids.shape[0], ids.device)
        total = torch.zeros(ids.shape[0], device=ids.device)
        for position in order:
            total += _reveal_one(model, target, batch, tokens, ids, position)
            where = torch.full_like(ids[:, :1], position)
            tokens = tokens.reveal(where, ids[:, position : position + 1])
        totals.append(total.view(given.size, part.shape[0]))
    return torch.cat(totals, dim=1)


def _reveal_one(
    model: FourM, target: str, batch: TokenBatch, tokens: Tokens, ids: Tensor, position: int
) -> Tensor:
    """The log-probability of one position, given the tokens already revealed: float32[n]."""
    known = replace(tokens, targets=torch.zeros_like(tokens.targets))
    full = batch.with_({target: known}) if target in model.encoder_embeddings else batch
    context = model.encode(full, batch_size=ids.shape[0]).context
    embedding = model.target(target)
    where = torch.full_like(ids[:, :1], position)
    y = model.run_decoder(model.mask_token + embedding.at(where), context)
    log_p = model.logits(y, target).float().log_softmax(dim=-1)[:, 0]
    return log_p.gather(1, ids[:, position : position + 1])[:, 0]


Attention = Literal["uniform", "own"]


def given_tokens(tokens: Mapping[str, Tensor]) -> TokenBatch:
    """A batch that gives all of some tokens: int64[B, L], or int64[B] of single values."""
    rows = {name: v[:, None] if v.ndim == 1 else v.flatten(1) for name, v in tokens.items()}
    return TokenBatch({name: Tokens.given(v, length=v.shape[1]) for name, v in rows.items()})


def joint_logits(
    model: FourM,
    batch: TokenBatch,
    targets: Sequence[str],
    *,
    attention: Attention = "own",
    budget: int | None = None,
) -> dict[str, Tensor]:
    """Logits float[B, L, V] of every token of each target, given what the batch gives.

    Args:
        model: any model whose targets these are
        batch: the inputs
        targets: grids; a sequence is decoded one token after the other
        attention: "own": each target's rows see each other; "uniform": as `AION.forward`
        budget: tokens of the inputs that are kept; by default all
    Raises:
        ConfigError: no target, or an attention that is unknown or not this model's
        FourMError: a target that the model does not predict, or a sequence
    """
    if attention not in ("uniform", "own") or not targets:
        raise ConfigError(f"give targets, and attention 'uniform' or 'own', got {attention!r}")
    if attention == "uniform" and model.config.empty_rows != "mean":
        raise ConfigError(
            "rows of this model that attend to nobody get nothing, where AION's get the mean of "
            "all; ask with attention='own'"
        )
    context = model.encode(batch, budget).context
    given = (context, context.tokens.shape[0])
    if attention == "uniform":
        y = joint_states(model, *given, targets, seen=False)
        lengths = [model.modality(name).max_tokens for name in targets]
        parts = dict(zip(targets, y.split(lengths, dim=1), strict=True))
    else:
        parts = {name: joint_states(model, *given, [name]) for name in targets}
    return {name: model.logits(y, name) for name, y in parts.items()}


def joint_states(
    model: FourM, context: Context, size: int, targets: Sequence[str], *, seen: bool = True
) -> Tensor:
    """The decoder's output for all tokens of the targets, one after the other: float[B, M, D].

    `seen`: whether rows attend to each other, or (as `AION.forward`) uniformly to all.
    """
    rows = []
    for name in targets:
        embedding = model.target(name)
        if embedding.modality.kind != "grid":
            raise FourMError(
                f"'{name}' is a sequence, whose tokens are said one after the other; generate it"
            )
        rows.append(model.mask_token + embedding.pos_emb + embedding.mod_emb)
    y = torch.cat(rows, dim=1).expand(size, -1, -1)
    bias = None
    if not seen:
        nobody = torch.zeros(size, 1, y.shape[1], dtype=torch.bool, device=y.device)
        bias = blocked(nobody, y.dtype)[:, None]
    return model.run_decoder(y, context, bias)
