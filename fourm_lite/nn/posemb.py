"""Sine-cosine position tables in the layout of 4M, and the resizing of position maps.

Unusual: the two-dimensional table runs over the *width* array first (`meshgrid(w, h, "ij")`), so
on a non-square grid row `r` of the table belongs to cell `(r // h, r % h)` of a transposed grid.
Published checkpoints store tables of this form; square grids are not affected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.nn.device import is_without_storage


def _waves(positions: Tensor, dim: int, temperature: float) -> Tensor:
    """Sine and cosine halves of one axis: float[P] -> float[P, dim]."""
    omega = 1.0 / temperature ** (torch.arange(dim // 2, dtype=torch.float32) / (dim / 2))
    angles = positions[:, None] * omega[None, :]  # [P, dim/2]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_1d(length: int, dim: int, temperature: float = 10000.0) -> Tensor:
    """Position table of a sequence: `[sin | cos]` halves.

    Shapes:
        returns: float32[1, length, dim]
    Source:
        Attention Is All You Need (Vaswani et al. 2017), halves instead of interleaved
    """
    if dim % 2:
        raise ConfigError(f"a 1-D sine-cosine table needs an even dim, got {dim}")
    if is_without_storage():
        return torch.empty(1, length, dim)
    return _waves(torch.arange(length, dtype=torch.float32), dim, temperature)[None]


def sincos_2d(height: int, width: int, dim: int, temperature: float = 10000.0) -> Tensor:
    """Position table of a grid: two quarters for each axis.

    Shapes:
        returns: float32[1, height * width, dim]
    """
    if dim % 4:
        raise ConfigError(f"a 2-D sine-cosine table needs a dim divisible by 4, got {dim}")
    if is_without_storage():
        return torch.empty(1, height * width, dim)
    slow, fast = torch.meshgrid(
        torch.arange(width, dtype=torch.float32),
        torch.arange(height, dtype=torch.float32),
        indexing="ij",  # width first: the order of the published tables
    )
    halves = [_waves(axis.flatten(), dim // 2, temperature) for axis in (slow, fast)]
    return torch.cat(halves, dim=1)[None]


def resize_map(pos_map: Tensor, size: tuple[int, int]) -> Tensor:
    """A position map resized bicubically; the same size returns the map itself.

    Shapes:
        pos_map: float[1, D, h, w]
        returns: float[1, D, *size]
    """
    if tuple(pos_map.shape[-2:]) == tuple(size):
        return pos_map
    resized = F.interpolate(pos_map.float(), size=size, mode="bicubic", align_corners=False)
    return resized.to(pos_map.dtype)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A flat position table float[1, h*w, D] resized from grid `old` to grid `new`."""
    if tuple(old) == tuple(new):
        return table
    pos_map = rearrange(table, "b (h w) d -> b d h w", h=old[0])
    return rearrange(resize_map(pos_map, new), "b d h w -> b (h w) d")
