"""Pre-norm transformer blocks of the encoder and the decoder, and their MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, check_choice, check_most
from fourm_lite.nn.attention import EMPTY_ROWS, Attention, Bias, CrossAttention, KVCache, Parts
from fourm_lite.nn.layers import LayerNorm, project

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
}


MAX_WIDTH, MAX_DEPTH = 1 << 16, 1024
"""Of a network; beyond these a configuration is damaged."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What one transformer block is made of; the words are those of 4M's configs.

    Units:
        empty_rows: ours; what attention gives a row whose keys are all blocked, the "mean" of the
            values (4M) or "zero"
    """

    dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    act_layer: str = "GELU"
    gated_mlp: bool = False
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    qk_norm: bool = False
    empty_rows: str = "mean"

    def __post_init__(self) -> None:
        """Refuses numbers that cannot make a block."""
        check_most(MAX_WIDTH, dim=self.dim, num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        if self.dim < 1 or self.num_heads < 1 or self.dim % self.num_heads:
            raise ConfigError(
                f"dim must be a positive multiple of num_heads, got dim={self.dim}, "
                f"num_heads={self.num_heads}"
            )
        check_choice("empty_rows", self.empty_rows, of=EMPTY_ROWS)
        check_choice("act_layer", self.act_layer, of=ACTIVATIONS)

    @property
    def attention(self) -> dict[str, Any]:
        """The options of a block's attention."""
        names = ("qkv_bias", "proj_bias", "qk_norm", "norm_bias", "empty_rows")
        return {name: getattr(self, name) for name in names}


class DropPath(nn.Module):
    """Drops a whole residual branch of some samples while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Keeps each row of float[B, ...] with probability 1 - rate and rescales it."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep


def depth_rates(rate: float, depth: int) -> list[float]:
    """Drop-path rates that rise from 0 to `rate` over the depth."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class Mlp(nn.Module):
    """fc2(act(fc1 x))."""

    def __init__(self, dim: int, hidden: int, *, act_layer: str, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.act = ACTIVATIONS[act_layer]()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., dim] to float[..., dim]."""
        return project(self.fc2, self.act(project(self.fc1, x)))


class GatedMlp(nn.Module):
    """fc2(act(fc1 x) * fc3 x), its hidden width two thirds of the plain one.

    Source:
        GLU Variants Improve Transformer (Shazeer 2020)
    """

    def __init__(self, dim: int, hidden: int, *, act_layer: str, bias: bool) -> None:
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.act = ACTIVATIONS[act_layer]()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.fc3 = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., dim] to float[..., dim]."""
        gate, up = project(self.fc1, x), project(self.fc3, x)
        if torch.is_grad_enabled() or not isinstance(self.act, nn.SiLU):
            return project(self.fc2, self.act(gate) * up)
        # In place: the two hidden tensors are the largest of a block.
        return project(self.fc2, F.silu(gate, inplace=True).mul_(up))


def _norm(config: BlockConfig) -> LayerNorm:
    return LayerNorm(config.dim, bias=config.norm_bias)


def _mlp(config: BlockConfig) -> nn.Module:
    kind = GatedMlp if config.gated_mlp else Mlp
    hidden = int(config.dim * config.mlp_ratio)
    return kind(config.dim, hidden, act_layer=config.act_layer, bias=config.mlp_bias)


class Block(nn.Module):
    """Encoder block: x += attn(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: BlockConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config.dim, config.num_heads, **config.attention)
        self.norm2 = _norm(config)
        self.mlp = _mlp(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Bias = None) -> Tensor:
        """Maps float[B, N, D] to the same shape; `bias` comes from `nn.attention.blocked`."""
        x = x + self.drop_path(self.attn(self.norm1(x), bias))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class Context:
    """What decoder blocks read: the normal case is `tokens`; generation caches keys and values.

    Shapes:
        tokens: float[B, N, D]; float[1, T, D] of `Parts`
        bias: float[B, 1, 1, N] or None when every token is valid; or `Parts`
        present: bool[B, 1, 1] or None; False rows have no context at all and receive zeros
    """

    tokens: Tensor
    bias: Bias = None
    present: Tensor | None = None

    def select(self, rows: Tensor) -> Context:
        """The context of some rows of the batch; it has no parts."""
        assert not isinstance(self.bias, Parts)
        return Context(
            self.tokens[rows],
            None if self.bias is None else self.bias[rows],
            None if self.present is None else self.present[rows],
        )


@dataclass
class BlockCache:
    """State of one decoder block in incremental decoding: own keys, and the context's, once."""

    own: KVCache
    cross: tuple[Tensor, Tensor]
    context: Context

    def select(self, rows: Tensor, context: Context) -> BlockCache:
        """The state of some rows of the batch; `context` is the context of these rows."""
        cross = (self.cross[0][rows], self.cross[1][rows])
        return BlockCache(self.own.select(rows), cross, context)


class DecoderBlock(nn.Module):
    """y += self_attn(norm1 y); y += cross_attn(query_norm y, context_norm c); y += mlp(norm2 y)."""

    def __init__(self, config: BlockConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.self_attn = Attention(config.dim, config.num_heads, **config.attention)
        self.query_norm = _norm(config)
        self.context_norm = _norm(config)
        self.cross_attn = CrossAttention(config.dim, config.num_heads, **config.attention)
        self.norm2 = _norm(config)
        self.mlp = _mlp(config)
        self.drop_path = DropPath(drop_path)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The context's keys and values, which do not depend on the decoder's tokens."""
        return self.cross_attn.keys_values(self.context_norm(context))

    def forward(
        self,
        y: Tensor,
        context: Context,
        bias: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Maps float[B, M, D] to the same shape; with a cache, y holds only the new tokens."""
        own = None if cache is None else cache.own
        y = y + self.drop_path(self.self_attn(self.norm1(y), bias, own))
        keys_values = self.keys_values(context.tokens) if cache is None else cache.cross
        queries = self.query_norm(y)
        y = y + self.drop_path(self.cross_attn(queries, keys_values, context.bias, context.present))
        return y + self.drop_path(self.mlp(self.norm2(y)))
