"""Self- and cross-attention on PyTorch's fused kernel, with the semantics of 4M's blocked rows.

Unusual: a query whose keys are all blocked gets the *mean* of the values, as in the original,
where the fused kernel alone would give zeros or NaN. A large negative number added to the scores
does that. An empty set of keys gives zeros. `eager_attention` is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.nn.layers import LayerNorm, project

EMPTY_ROWS = ("mean", "zero")


def blocked(attend: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive score mask from a positive mask: 0 where `attend`, very negative elsewhere.

    The number absorbs any score (a fully blocked row becomes uniform), yet survives the kernels'
    own rescaling, which `finfo.min` would not.

    A GPU's backward pass recomputes exp(score - logarithm of the sum), and at 1e30 the rounding of
    that difference alone is infinite. Where gradients are wanted there, the number is one that
    still blocks and is exact enough; a fully blocked row is then only padding, and need not be a
    mean.
    """
    learns_on_gpu = attend.device.type != "cpu" and torch.is_grad_enabled()
    fill = -3e4 if dtype == torch.float16 or learns_on_gpu else -1e30
    zeros = torch.zeros((), dtype=dtype, device=attend.device)
    return torch.where(attend, zeros, torch.full_like(zeros, fill))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Shapes:
        q: float[B, heads, Nq, d]; k, v: float[B, heads, Nk, d]
        bias: float, broadcastable to [B, heads, Nq, Nk], from `blocked`
        returns: float[B, heads, Nq, d]
    """
    if k.shape[2] == 0:
        return torch.zeros_like(q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None = None) -> Tensor:
    """The same written out, blocked scores filled with `-finfo.max`: the oracle, not for use."""
    if k.shape[2] == 0:
        return torch.zeros_like(q)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if attend is not None:
        scores = scores.masked_fill(~attend, -torch.finfo(scores.dtype).max)
    return scores.softmax(dim=-1) @ v


@dataclass(frozen=True)
class Parts:
    """Batches of other lengths that lie in one row: where each is, and what its attention adds.

    Products and norms see the row; attention sees one part after the other, so that nothing is
    padded.

    Shapes:
        sizes: (B, N) of each part; the row holds B * N tokens of it, item by item
        biases: float, broadcastable to [B, heads, Nq, N], or None; one a part
    """

    sizes: tuple[tuple[int, int], ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, tokens: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Parts:
        """Those of some float[B, N, D]."""
        return cls(tuple((x.shape[0], x.shape[1]) for x in tokens), tuple(biases))

    @staticmethod
    def row(tokens: Sequence[Tensor]) -> Tensor:
        """The row of some float[B, N, D]: float[1, T, D]."""
        return torch.cat([rearrange(x, "b n d -> 1 (b n) d") for x in tokens], dim=1)

    def split(self, row: Tensor) -> list[Tensor]:
        """The parts of a row: float[1, ..., T, D] -> float[B, ..., N, D] each."""
        parts = row[0].split([b * n for b, n in self.sizes], dim=-2)
        return [
            x[None] if b == 1 else x.unflatten(-2, (b, n)).movedim(-3, 0)
            for x, (b, n) in zip(parts, self.sizes, strict=True)
        ]

    def attended(
        self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *, own: bool
    ) -> Tensor:
        """Attention part by part.

        Shapes:
            k, v: float[1, heads, T, d]
            q: the same where it is the parts' `own`; else float[sum of B, heads, M, d], each item's
            returns: float[1, T, heads * d], or float[sum of B, M, heads * d]
        """
        queries = self.split(q) if own else q.split([b for b, _ in self.sizes])
        found = [
            rearrange(attend(*part), "b h n d -> b n (h d)")
            for part in zip(queries, self.split(k), self.split(v), self.biases, strict=True)
        ]
        return self.row(found) if own else torch.cat(found)


Bias = Tensor | Parts | None
"""What is added to scores; `Parts` where tokens lie in one row."""


@dataclass
class KVCache:
    """Keys and values of the tokens decoded so far; grows in place, in blocks.

    Shapes:
        k, v: float[B, heads, capacity, d], of which `length` are filled
    """

    k: Tensor
    v: Tensor
    length: int = 0

    @classmethod
    def empty(cls, like: Tensor, capacity: int) -> KVCache:
        """A cache for tensors like float[B, heads, n, d]."""
        shape = (like.shape[0], like.shape[1], capacity, like.shape[3])
        return cls(like.new_empty(shape), like.new_empty(shape))

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds n tokens and returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """The cache of some rows of the batch."""
        return KVCache(self.k[rows], self.v[rows], self.length)


class _Heads(nn.Module):
    """What both kinds of attention have: heads, projections, norms of queries and keys.

    Units:
        projections: of the input, name -> width
    """

    proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module

    def __init__(
        self,
        dim: int,
        num_heads: int,
        projections: Mapping[str, int],
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: bool = False,
        norm_bias: bool = True,
        empty_rows: str = "mean",
    ) -> None:
        super().__init__()
        # with normalised queries and keys the fork's code computes as 4M does
        self.zeroes = empty_rows == "zero" and not qk_norm
        self.num_heads = num_heads
        for name, width in projections.items():
            self.add_module(name, nn.Linear(dim, width, bias=qkv_bias))
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        for name in ("q_norm", "k_norm"):
            norm = LayerNorm(dim // num_heads, bias=norm_bias) if qk_norm else nn.Identity()
            self.add_module(name, norm)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *, own: bool = True) -> Tensor:
        """What queries float[B, heads, N, d] gather: float[B, N, heads * d]."""
        if isinstance(bias, Parts):
            return bias.attended(self._gathered, q, k, v, own=own)
        return rearrange(self._gathered(q, k, v, bias), "b h n d -> b n (h d)")

    def _gathered(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """float[B, heads, N, d], zeros in rows whose keys are all blocked, where asked for."""
        y = fused_attention(q, k, v, bias)
        if bias is None or not self.zeroes:
            return y
        return y * (bias == 0).any(dim=-1, keepdim=True)


class Attention(_Heads):
    """Multi-head self-attention with a joint qkv projection; options are those of `BlockConfig`."""

    qkv: nn.Linear

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, {"qkv": 3 * dim}, **options)

    def forward(self, x: Tensor, bias: Bias = None, cache: KVCache | None = None) -> Tensor:
        """Attends within x: float[B, N, D]; with a cache, to the cached tokens before it as
        well.
        """
        q, k, v = rearrange(project(self.qkv, x), "b n (c h d) -> c b h n d", c=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.append(k, v)
        return project(self.proj, self._attended(q, k, v, bias))


class CrossAttention(_Heads):
    """Multi-head attention of queries to a context; its keys and values can be computed once."""

    q: nn.Linear
    kv: nn.Linear

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, {"q": dim, "kv": 2 * dim}, **options)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context float[B, N, D]: two float[B, heads, N, d]."""
        k, v = rearrange(
            project(self.kv, context), "b n (c h d) -> c b h n d", c=2, h=self.num_heads
        )
        return self.k_norm(k), v

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        bias: Bias = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Attends from x: float[B, M, D] to the context behind `keys_values`.

        Rows where `present` (bool[B, 1, 1]) is False have no context: they attend to nothing.
        """
        if keys_values[0].shape[2] == 0:  # nothing to attend to: the projection of zeros
            zeros = torch.zeros_like(x)
            return zeros if self.proj.bias is None else zeros + self.proj.bias
        q = self.q_norm(rearrange(project(self.q, x), "b n (h d) -> b h n d", h=self.num_heads))
        y = self._attended(q, *keys_values, bias, own=False)
        if present is not None:
            y = y * present
        return project(self.proj, y)
