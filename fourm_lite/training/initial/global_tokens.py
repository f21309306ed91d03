"""A decoder that starts as a linear read-out of a global embedding's codes.

Sixteen positions share one table of logits, so from noise a model first has to find out that each
position asks for another part of the embedding: a plateau of thousands of steps. Here this is
written into the weights. The first decoder block averages the context and maps it linearly to all
parts; its MLP removes, at each position, the parts that other positions ask for; the logits are
those of a Gaussian around the position's codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.model.fourm import Encoded, FourM


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """Numbers of the start.

    Units:
        marker: what marks a position in its own channel, in units of the latents' deviation
        gate: how surely a part is kept, in arguments of the GELU
        sharpness: inverse variance of the Gaussian of the logits
        quiet: factor on the output projections of the later blocks
    """

    marker: float = 4.0
    gate: float = 8.0
    sharpness: float = 1.5
    quiet: float = 0.1


def _block(model: FourM, number: int) -> Any:
    return model.decoder[number]


def _decoder(model: FourM, name: str) -> Any:
    return model.decoder_embeddings[name]


@torch.no_grad()
def pooled_context(model: FourM, encoded: Encoded) -> Tensor:
    """What a uniform attention of the first decoder block sees: float[B, D]."""
    tokens = _block(model, 0).context_norm(encoded.context.tokens)
    valid = encoded.packed.valid[..., None].to(tokens.dtype)
    return (tokens * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


@torch.no_grad()
def start_read_out(
    model: FourM, name: str, codes: Tensor, linear: Tensor, scale: Tensor, options: ReadOut
) -> None:
    """Writes the read-out into the decoder.

    Shapes:
        codes: float[heads, V, d]; linear: float[D + 1, heads * d] from `data.linear.ridge`
        scale: float[], mean square of the linear map's outputs
    Raises:
        ConfigError: the model is too narrow
    """
    heads, _, d = codes.shape
    parts, width = heads * d, model.config.dim
    if parts + heads > width or 2 * parts > int(width * model.config.mlp_ratio):
        raise ConfigError(f"{heads} parts of {d} do not fit into a decoder of width {width}")
    marker = options.marker
    before = float(((parts * scale + marker**2) / width).sqrt())  # deviation before the gate
    after = float(((d * scale + marker**2) / width).sqrt())  # and after it
    _start_positions(model, name, heads, parts, marker)
    _start_reading(model, linear, parts)
    _start_gate(model, parts, d, before, options)
    for number in range(1, len(model.decoder)):
        block = _block(model, number)
        for layer in (block.self_attn.proj, block.cross_attn.proj, block.mlp.fc2):
            layer.weight.mul_(options.quiet)
    table = _decoder(model, name).to_logits.weight
    table[:, :parts] = codes.transpose(0, 1).flatten(1) * options.sharpness * after
    half = codes.square().sum(dim=-1).T / 2  # [V, heads]
    table[:, parts : parts + heads] = -half * options.sharpness * after / marker


def _start_positions(model: FourM, name: str, heads: int, parts: int, marker: float) -> None:
    embedding = _decoder(model, name)
    embedding.pos_emb.zero_()
    embedding.pos_emb[0, :, parts : parts + heads] = marker * torch.eye(heads)
    model.mask_token[..., : parts + heads] = 0.0


def _start_reading(model: FourM, linear: Tensor, parts: int) -> None:
    block, width = _block(model, 0), model.config.dim
    block.self_attn.proj.weight.zero_()
    cross = block.cross_attn
    cross.q.weight.mul_(0.05)  # nearly uniform attention
    cross.kv.weight[width:] = torch.eye(width)
    cross.kv.bias[width:] = 0.0
    cross.proj.weight.zero_()
    cross.proj.weight[:parts] = linear[:-1].T
    cross.proj.bias.zero_()
    cross.proj.bias[:parts] = linear[-1]


def _start_gate(model: FourM, parts: int, d: int, before: float, options: ReadOut) -> None:
    """gelu(x) - gelu(-x) = x: two units take a channel away where another position's mark asks.

    Without any mark nothing is taken away, so the queries of other modalities pass as they are.
    """
    mlp = _block(model, 0).mlp
    unit = torch.arange(parts)
    others = options.gate * before / options.marker  # a mark opens the gates of the other parts
    mlp.fc2.weight.mul_(options.quiet)
    for sign, start in ((1.0, 0), (-1.0, parts)):
        rows = mlp.fc1.weight[start : start + parts]
        rows.zero_()
        rows[:, parts : parts + parts // d] = others
        rows[unit, parts + unit // d] = 0.0
        rows[unit, unit] = sign
        mlp.fc1.bias[start : start + parts] = -options.gate
        columns = mlp.fc2.weight[:, start : start + parts]
        columns.zero_()
        columns[unit, unit] = -sign * before
