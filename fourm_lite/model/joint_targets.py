"""Every token of several targets asked for at once, in one pass of the decoder.

Unusual: in AION-1's own `forward` a decoder row attends uniformly to the rows of all targets
together, so asking for one more target changes the logits of the others. That is neither what it
was trained with nor what generation does; `attention="own"` asks for each target as training does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.model.fourm import Encoded, FourM
from fourm_lite.nn.attention import blocked

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
        targets: grids; a sequence is said one token after the other
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
    encoded = model.encode(batch, budget)
    if attention == "uniform":
        y = joint_states(model, encoded, targets, seen=False)
        lengths = [model.modality(name).max_tokens for name in targets]
        parts = dict(zip(targets, y.split(lengths, dim=1), strict=True))
    else:
        parts = {name: joint_states(model, encoded, [name], seen=True) for name in targets}
    return {name: model.logits(y, name) for name, y in parts.items()}


def joint_states(model: FourM, encoded: Encoded, targets: Sequence[str], *, seen: bool) -> Tensor:
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
    size = encoded.context.tokens.shape[0]
    y = torch.cat(rows, dim=1).expand(size, -1, -1)
    bias = None
    if not seen:
        nobody = torch.zeros(size, 1, y.shape[1], dtype=torch.bool, device=y.device)
        bias = blocked(nobody, y.dtype)[:, None]
    return model.run_decoder(y, encoded.context, bias)
