"""Random numbers for tokenizers, drawn where the generator lives and by default on the CPU.

A seed then means the same on every device; the caller moves the result to its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rand(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1): float32 of a shape."""
    return torch.rand(shape, generator=generator, device=_device(generator))


def randn(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Normal numbers: float32 of a shape."""
    return torch.randn(shape, generator=generator, device=_device(generator))


def randint(high: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Whole numbers below `high`: int64[count]."""
    return torch.randint(high, (count,), generator=generator, device=_device(generator))


def randperm(count: int, generator: torch.Generator | None) -> Tensor:
    """The numbers below `count` in random order: int64[count]."""
    return torch.randperm(count, generator=generator, device=_device(generator))


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
