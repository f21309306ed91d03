"""Logits of a global embedding that begin as a regression from what the decoder says already.

A decoder that knows one embedding of a photo knows much of another: of its outputs at the positions
of the new one, a linear map gives the codes half right before the first step of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.data.linear import solve_ridge
from fourm_lite.data.loader import MaskedBatch
from fourm_lite.errors import ConfigError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

TRIED = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # inverse variances of the start of the logits


def code_parts(tokenizer: VQTokenizer) -> Tensor:
    """The codes without the constant channel of `closed_form.start_vectors`: float[heads, V, d]."""
    if not isinstance(tokenizer.quantize, Memcodes):
        raise ConfigError("a read-out needs a tokenizer with memcodes")
    return tokenizer.quantize.tables()[1][..., :-1].detach().float()


@torch.no_grad()
def start_logits(
    model: FourM,
    entry: Modality,
    tokenizer: VQTokenizer,
    batches: Iterable[MaskedBatch],
    *,
    penalty: float = 1e-3,
) -> float:
    """Writes a read-out found by regression into the new logits; returns its cross-entropy.

    What is regressed is the score of each code under a Gaussian around the true vector: of the
    decoder's outputs the best linear map gives its mean, so far as they tell it.
    """
    codes = code_parts(tokenizer)  # [L, V, d]
    half = codes.square().sum(dim=-1) / 2
    width = model.config.dim
    gram, moment = torch.zeros(width, width), torch.zeros(width, entry.vocab_size or 0)
    held: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(batches):
        y, ids = _outputs(model, entry, batch)
        if number % 8 == 7:
            held.append((y, ids))
            continue
        places = torch.arange(entry.max_tokens).expand_as(ids)
        own = codes[places, ids]  # [B, L, d]: the code stands for the vector
        scores = torch.einsum("bld,lvd->blv", own, codes) - half
        flat = y.flatten(0, 1)
        gram += flat.T @ flat
        moment += flat.T @ scores.flatten(0, 1)
    linear = solve_ridge(gram, moment, penalty * gram.diagonal().mean()).T  # [V, D]
    losses = {sharp: _loss(linear * sharp, held) for sharp in TRIED}
    best = min(losses, key=lambda sharp: losses[sharp])
    decoder = model.decoder_embeddings[entry.name]
    assert isinstance(decoder.to_logits, nn.Linear)
    decoder.to_logits.weight.copy_(linear * best)
    return losses[best]


def _loss(weight: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> float:
    losses = [F.cross_entropy((y @ weight.T).flatten(0, 1), ids.flatten()) for y, ids in held]
    return float(torch.stack(losses).mean())


def _outputs(model: FourM, entry: Modality, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
    """The decoder's outputs at all positions of the new modality, and the true codes there."""
    encoded = model.encode(batch.batch, batch.input_budget)
    targets = model.pack_targets(batch.batch, batch.target_budget, order=[entry.name])
    y = model.decode(targets, encoded)
    rows = targets.valid.all(dim=1)
    return y[rows].float(), targets.ids[rows]
