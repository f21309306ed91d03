"""Noise of a training step that follows from its number alone, so that a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def scoped_noise(seed: int, step: int, rank: int) -> Iterator[torch.Generator]:
    """A generator for one step; inside, torch's own state follows it too and is then put back.

    Dropout draws from torch's global generator, which is why a passed generator is not enough.
    """
    number = (seed * 1_000_003 + step) * 4099 + rank
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(number % 2**63)
        yield torch.Generator().manual_seed((number + 2**40) % 2**63)
