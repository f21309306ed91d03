"""Features after several blocks: which blocks, and in which form. timm's words, without timm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.backbone.embed import Embedded
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.nn.attention import blocked
from fourm_lite.nn.device import threads_for

Indices = int | Sequence[int] | None
Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def take_indices(count: int, indices: Indices) -> tuple[list[int], int]:
    """Block numbers from 0, and the largest: None is all, n the last n, negative from the end.

    Raises:
        ConfigError: there is no such block

    >>> take_indices(12, 2), take_indices(12, (0, -1))
    (([10, 11], 11), ([0, 11], 11))
    """
    if indices is None:
        indices = count
    numbers = range(count - indices, count) if isinstance(indices, int) else indices
    chosen = [count + i if not isinstance(indices, int) and i < 0 else i for i in numbers]
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise ConfigError(f"there are {count} blocks, 0 to {count - 1}; got indices={indices}")
    return chosen, max(chosen)


def collect(
    embedded: Embedded, blocks: Iterable[nn.Module], *, registers: Tensor | None, call: Call
) -> Iterator[Tensor]:
    """The tokens float[B, N, D] after each block in turn; registers go with them and are dropped.

    Shapes:
        registers: float[1, R, D] or None
    """
    x, valid = embedded.tokens, embedded.valid
    skip = 0 if registers is None else registers.shape[1]
    if registers is not None:
        x = torch.cat([registers.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        valid = None if valid is None else nn.functional.pad(valid, (skip, 0), value=True)
    bias = None if valid is None else blocked(valid, x.dtype)[:, None, None, :]
    for block in blocks:
        with threads_for(x.shape[0] * x.shape[1]):
            x = call(block, x, bias)
        yield x[:, skip:] if skip else x


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Refuses timm's words for less attention.

    Raises:
        ConfigError: one of them is given
    """
    if attn_mask is not None or is_causal:
        raise ConfigError(
            "every token of an FMViT attends to all that are there; leave out attn_mask and "
            "is_causal, or give a TokenBatch in which the tokens to ignore are no inputs"
        )


def as_format(tokens: Tensor, output_fmt: str, grid: tuple[int, int] | None) -> Tensor:
    """Tokens float[B, N, D] as they are ("NLC") or as maps float[B, D, Hq, Wq] ("NCHW")."""
    if output_fmt == "NLC":
        return tokens
    if output_fmt != "NCHW":
        raise ConfigError(f'output_fmt is "NCHW" or "NLC", got {output_fmt!r}')
    if grid is None:
        raise ShapeError('the tokens of a batch of modalities form no map; ask for "NLC"')
    return rearrange(tokens, "b (h w) d -> b d h w", h=grid[0]).contiguous()
