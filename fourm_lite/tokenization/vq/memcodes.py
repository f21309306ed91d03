"""Memcodes: multi-head quantization by attention to fixed codes through learned keys and values.

Unusual: the key and value tables of all codes are computed once and kept while the weights do not
change and no gradient is wanted; values are gathered, not multiplied by a one-hot matrix. Heads
may lie on a spatial map and may be one, which the original cannot decode.

Source:
    The memcodes quantizer of vector-quantize-pytorch (idea only)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.inputs import Quantized, check_range
from fourm_lite.tokenization.vq.randomness import rand


class HeadLinear(nn.Module):
    """One linear map for each head, without bias: float[heads, K, d] -> float[heads, K, c]."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(heads, dim, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Maps each head's rows."""
        return einsum(x, self.weight, "h k d, h d c -> h k c")


class Memcodes(nn.Module):
    """Each head picks the code whose key answers its part of the latent best; gives its value.

    Shapes:
        codes: float[heads, K, d], fixed; d = latent_dim / heads
    """

    codes: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.heads = config.num_codebooks
        dim = config.latent_dim // self.heads
        self.scale = dim**-0.5
        self.register_buffer("codes", torch.randn(self.heads, config.codebook_size, dim))
        self.to_k = HeadLinear(self.heads, dim)
        self.to_v = HeadLinear(self.heads, dim)
        self._kept: tuple[tuple[Any, ...], Tensor, Tensor] | None = None

    def forward(
        self, x: Tensor, *, update: bool = False, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantizes a latent map; `update` is the training step, which draws Gumbel noise.

        Shapes:
            x: float[B, latent_dim, Hq, Wq]
        """
        with torch.autocast(x.device.type, enabled=False):
            q = rearrange(x.float(), "b (n d) h w -> n (b h w) d", n=self.heads) * self.scale
            keys, values = self.tables()
            scores = q @ keys.float().mT  # [heads, N, K]
            if update:
                weights = _gumbel_one_hot(scores, generator)
                tokens, picked = weights.argmax(dim=-1), weights @ values.float()
            else:
                tokens = scores.argmax(dim=-1)
                picked = _gathered(values, tokens)
        sizes = {"b": x.shape[0], "h": x.shape[2], "w": x.shape[3]}
        latents = rearrange(picked.to(x.dtype), "n (b h w) d -> b (n d) h w", **sizes)
        grid = rearrange(tokens, "n (b h w) -> b n h w", **sizes)
        return Quantized(latents, grid.squeeze(1) if self.heads == 1 else grid, x.new_zeros(()))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Values of tokens.

        Shapes:
            tokens: int64[B, heads, Hq, Wq], or int64[B, Hq, Wq] with one head
            returns: float[B, latent_dim, Hq, Wq]
        """
        check_range(tokens, self.codes.shape[1], "token", "codebook")
        if self.heads == 1:
            tokens = tokens.unsqueeze(1)
        b, _, h, w = tokens.shape
        picked = _gathered(self.tables()[1], rearrange(tokens, "b n h w -> n (b h w)"))
        return rearrange(picked, "n (b h w) d -> b (n d) h w", b=b, h=h, w=w)

    def expected(self, probs: Tensor) -> Tensor:
        """The mean value under a distribution: float[B, heads, N, V] -> float[B, latent_dim, N]."""
        values = self.tables()[1]
        mean = einsum(probs.to(values.dtype), values, "b n l k, n k d -> b n d l")
        return rearrange(mean, "b n d l -> b (n d) l")

    def tables(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all codes: two float[heads, K, d], kept while nothing changes."""
        sources = (self.codes, self.to_k.weight, self.to_v.weight)
        learns = torch.is_grad_enabled() and (
            self.to_k.weight.requires_grad or self.to_v.weight.requires_grad
        )
        traced = torch.compiler.is_compiling()
        if self.training or learns or traced or any(t.is_inference() for t in sources):
            self._kept = None
            return self._computed()
        stamp = tuple((t.data_ptr(), t._version) for t in sources)
        if self._kept is None or self._kept[0][: len(stamp)] != stamp:
            # Ordinary tensors, usable under autograd later; the aliases keep the storage alive, so
            # that an equal address means the same weights
            with torch.inference_mode(False), torch.no_grad():
                aliases = tuple(t.detach() for t in sources)
                self._kept = ((*stamp, *aliases), *self._computed())
        return self._kept[1], self._kept[2]

    def _computed(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.codes.device.type, enabled=False):
            return self.to_k(self.codes), self.to_v(self.codes)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}  # copies and pickles compute their own


def _gathered(values: Tensor, tokens: Tensor) -> Tensor:
    """Rows of each head's table: float[heads, K, d], int64[heads, N] -> float[heads, N, d]."""
    heads = torch.arange(values.shape[0], device=values.device)
    return values[heads[:, None], tokens]


def _gumbel_one_hot(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random one-hot choice by Gumbel noise, with the gradient of the softmax (temperature 1)."""
    uniform = rand(tuple(scores.shape), generator).to(scores)
    noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
    soft = (scores + noise).softmax(dim=-1)
    hard = F.one_hot(soft.argmax(dim=-1), scores.shape[-1]).to(soft)
    return hard + (soft - soft.detach())
