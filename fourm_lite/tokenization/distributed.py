"""Sums and broadcasts over processes that are identities where torch.distributed is not in use."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The first process's x, on every process."""
    if is_distributed():
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x
