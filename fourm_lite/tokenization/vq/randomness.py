"""Where random numbers come from: an argument, never a global state.

Masking, budgets and shuffled formats draw from a `RandomSource`. `TorchSource` is ours: everything
follows from one generator. `ThreeSources` draws each number from the generator that the original
draws it from (Python's, NumPy's, torch's), so that its cases can be reproduced.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class RandomSource(Protocol):
    """The draws that masking needs."""

    def uniform(self) -> float:
        """A number in [0, 1)."""
        ...

    def coin(self) -> bool:
        """True or False, both equally likely."""
        ...

    def uniforms(self, n: int) -> Tensor:
        """Numbers in [0, 1), float32[n]."""
        ...

    def below(self, n: int) -> int:
        """A whole number in 0..n-1."""
        ...

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order; the argument is unchanged."""
        ...

    def dirichlet(self, alphas: Sequence[float]) -> list[float]:
        """Shares that add up to 1; a zero among the positive `alphas` gets nothing."""
        ...


class _Drawn(RandomSource):
    """What both sources draw alike: masks from torch, shares from NumPy."""

    _torch: torch.Generator
    _numpy: np.random.Generator | np.random.RandomState

    def uniforms(self, n: int) -> Tensor:
        return torch.rand(n, generator=self._torch)

    def dirichlet(self, alphas: Sequence[float]) -> list[float]:
        positive = [i for i, alpha in enumerate(alphas) if alpha > 0]
        shares = [0.0] * len(alphas)
        if positive:
            drawn = self._numpy.dirichlet([alphas[i] for i in positive])
            for i, share in zip(positive, drawn, strict=True):
                shares[i] = float(share)
        return shares


class TorchSource(_Drawn):
    """All draws follow from one CPU generator."""

    _numpy: np.random.Generator

    def __init__(self, generator: torch.Generator) -> None:
        self._torch = generator
        # torch has no public Dirichlet with a generator, so NumPy's is seeded from ours.
        seed = int(torch.randint(2**62, (), generator=generator))
        self._numpy = np.random.Generator(np.random.PCG64(seed))

    @classmethod
    def seeded(cls, seed: int) -> TorchSource:
        """A source that gives the same draws for the same seed."""
        return cls(torch.Generator().manual_seed(seed))

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(self._numpy.random())

    def coin(self) -> bool:
        """True or False, both equally likely."""
        return bool(self._numpy.random() < 0.5)

    def below(self, n: int) -> int:
        """A whole number in 0..n-1."""
        return int(self._numpy.integers(n)) if n != 1 else 0

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order; the argument is unchanged."""
        return [items[int(i)] for i in self._numpy.permutation(len(items))]

    def dirichlet(self, alphas: Sequence[float]) -> list[float]:
        """Shares that add up to 1; a zero among the positive `alphas` gets nothing."""
        positive = [alpha for alpha in alphas if alpha > 0]
        if len(positive) == 1 and positive[0] >= 0.1:
            # What NumPy draws for one, without its checks; the share may be 1 - 1e-16 there too.
            drawn = self._numpy.standard_gamma(positive[0])
            share = drawn * (1.0 / drawn) if drawn else 1.0
            return [share if alpha > 0 else 0.0 for alpha in alphas]
        return super().dirichlet(alphas)


class ThreeSources(_Drawn):
    """Draws as the original does: probabilities from Python, cuts from NumPy, masks from torch."""

    _numpy: np.random.RandomState

    def __init__(
        self, python: random.Random, numpy: np.random.RandomState, torch: torch.Generator
    ) -> None:
        self._python, self._numpy, self._torch = python, numpy, torch

    @classmethod
    def seeded(cls, seed: int) -> ThreeSources:
        """All three seeded alike, as `random.seed`, `numpy.random.seed`, `torch.manual_seed` do."""
        torch_seeded = torch.Generator().manual_seed(seed)
        return cls(random.Random(seed), np.random.RandomState(seed), torch_seeded)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return self._python.random()

    def coin(self) -> bool:
        """True or False, both equally likely."""
        return self._python.choice((False, True))

    def below(self, n: int) -> int:
        """A whole number in 0..n-1."""
        return int(self._numpy.randint(n))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order; the argument is unchanged."""
        order = list(items)
        self._python.shuffle(order)
        return order


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
