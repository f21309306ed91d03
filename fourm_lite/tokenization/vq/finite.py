"""Quantizers without a codebook: every channel is rounded to a few levels (FSQ) or to a sign (LFQ).

Unusual: AION-1 bounds by a tanh that is shifted where the number of levels is even, with the first
channel least significant; TerraMind by a sigmoid onto 0..1; the sign quantizer has its first
channel most significant, and 0 counts as negative. None has a tensor.

Source:
    Finite Scalar Quantization (Mentzer et al. 2023); MAGVIT-v2 (Yu et al. 2023) for signs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.tokenization.vq.inputs import Quantized

Rounded = tuple[Tensor, Tensor]
"""Bounded latents float[..., d] and digits int64[..., d] from 0."""
STRETCH = 1.001  # so that the outer levels are reached
MAX_CODES = 2**31


@dataclass(frozen=True)
class Bound:
    """How a channel is bounded and rounded, and what value a digit stands for."""

    round: Callable[[Tensor, Tensor], Rounded]
    value: Callable[[Tensor, Tensor], Tensor]


def _round_tanh(z: Tensor, levels: Tensor) -> Rounded:
    half = (levels - 1) * STRETCH / 2
    offset = torch.where(levels % 2 == 1, 0.0, 0.5)
    bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
    middle = levels // 2
    return bounded / middle, bounded.round().long() + middle


def _round_sigmoid(z: Tensor, levels: Tensor) -> Rounded:
    bounded = torch.sigmoid(z)
    return bounded, (bounded * (levels - 1)).round().long()


BOUNDS: dict[str, Bound] = {
    "tanh": Bound(_round_tanh, lambda digits, levels: (digits - levels // 2) / (levels // 2)),
    "sigmoid": Bound(_round_sigmoid, lambda digits, levels: digits / (levels - 1)),
}


class FiniteScalar(nn.Module):
    """FSQ: latents to the nearest of levels_0 x levels_1 x ... values; holds no tensors."""

    def __init__(self, levels: Sequence[int], bound: str = "sigmoid") -> None:
        super().__init__()
        check_choice("the bound of a finite quantizer", bound, of=BOUNDS)
        if not levels or min(levels) < 2 or math.prod(levels) > MAX_CODES:
            raise ConfigError(f"a finite quantizer needs levels of at least 2, got {list(levels)}")
        self.levels = tuple(levels)
        self.bound = BOUNDS[bound]

    @property
    def vocab_size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    def forward(
        self, x: Tensor, *, update: bool = False, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantizes a latent map float[B, d, ...]; gradients go straight through the rounding.

        Raises:
            ShapeError: another number of channels
        """
        if x.shape[1] != len(self.levels):
            raise ShapeError(
                f"a quantizer of levels {list(self.levels)} takes as many channels, got "
                f"{list(x.shape)}"
            )
        z = rearrange(x.float(), "b d ... -> b ... d")
        levels = self._levels(x.device)
        bounded, digits = self.bound.round(z, levels)
        values = self.bound.value(digits, levels)
        if self.training and x.requires_grad:
            values = bounded + (values - bounded).detach()
        tokens = (digits * self._basis(x.device)).sum(-1)
        latents = rearrange(values, "b ... d -> b d ...").to(x.dtype)
        return Quantized(latents, tokens, x.new_zeros(()))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Values of codes: int64[B, ...] -> float32[B, d, ...]."""
        levels = self._levels(tokens.device)
        digits = tokens.long()[..., None] // self._basis(tokens.device) % levels
        return rearrange(self.bound.value(digits, levels), "b ... d -> b d ...").float()

    def expected(self, probs: Tensor) -> Tensor:
        """The mean value: probabilities float[B, 1, N, V] -> float[B, d, N]."""
        table = self.lookup(torch.arange(self.vocab_size, device=probs.device)[None])[0]
        return rearrange(probs[:, 0].float() @ table.T, "b n d -> b d n")

    def _levels(self, device: torch.device) -> Tensor:
        return torch.tensor(self.levels, device=device)

    def _basis(self, device: torch.device) -> Tensor:
        return torch.tensor((1, *self.levels[:-1]), device=device).cumprod(0)


class Signs(nn.Module):
    """LFQ: every channel becomes -1 or 1; the first channel is the most significant bit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if not 1 <= channels < 31:
            raise ConfigError(f"a sign quantizer has 1 to 30 channels, got {channels}")
        self.channels = channels

    def forward(self, x: Tensor) -> Quantized:
        """Quantizes latents float[B, d, ...]."""
        if x.shape[1] != self.channels:
            raise ShapeError(f"{self.channels} channels are quantized, got {list(x.shape)}")
        bits = rearrange(x > 0, "b d ... -> b ... d").long()
        tokens = (bits << self._places(x.device)).sum(-1)
        return Quantized(self.lookup(tokens).to(x.dtype), tokens, x.new_zeros(()))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Values of codes: int64[B, ...] -> float32[B, d, ...]."""
        bits = (tokens.long()[..., None] >> self._places(tokens.device)) & 1
        return rearrange(bits * 2.0 - 1, "b ... d -> b d ...")

    def _places(self, device: torch.device) -> Tensor:
        return torch.arange(self.channels - 1, -1, -1, device=device)
