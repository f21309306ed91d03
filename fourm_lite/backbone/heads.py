"""Heads: how tokens become one vector, and how that becomes classes.

A head is described by a `HeadConfig` and never passed as a module, so that it can be saved.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.nn.attention import CrossAttention, blocked
from fourm_lite.nn.layers import LayerNorm


class AttentivePool(nn.Module):
    """A learned query that attends to the tokens.

    Source:
        Set Transformer (Lee et al. 2019); the attentive probe of CAE and V-JEPA
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.norm = LayerNorm(dim)
        self.attn = CrossAttention(dim, num_heads)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D], bool[B, N] -> float[B, D]."""
        bias = None if valid is None else blocked(valid, x.dtype)[:, None, None, :]
        query = repeat(self.query, "1 q d -> b q d", b=x.shape[0])
        pooled = self.attn(query, self.attn.keys_values(self.norm(x)), bias)
        return rearrange(pooled, "b 1 d -> b d")


class MeanPool(nn.Module):
    """The mean of the tokens that are there."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D], bool[B, N] -> float[B, D]."""
        if valid is None:
            return x.mean(dim=1)
        present = valid[..., None].to(x.dtype)
        return (x * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)


class NoPool(nn.Module):
    """The tokens as they are."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D] -> float[B, N, D]."""
        return x


def make_pool(config: HeadConfig, dim: int, num_heads: int) -> nn.Module:
    """What turns tokens into one vector."""
    if config.pool == "attentive":
        return AttentivePool(dim, num_heads)
    return MeanPool() if config.pool == "avg" else NoPool()


def make_norm(config: HeadConfig, dim: int) -> nn.Module:
    """The norm before the classifier; without a classifier there is none."""
    return LayerNorm(dim) if config.num_classes else nn.Identity()


def make_classifier(config: HeadConfig, dim: int) -> nn.Module:
    """The linear maps of the head, freshly drawn."""
    if not config.num_classes:
        return nn.Identity()
    maps: list[nn.Module] = []
    for _ in range(config.layers - 1):
        maps += [_linear(dim, dim), nn.GELU()]
    last = _linear(dim, config.num_classes)
    dropout = [nn.Dropout(config.dropout)] if config.dropout else []
    return nn.Sequential(*maps, *dropout, last) if maps or dropout else last


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
