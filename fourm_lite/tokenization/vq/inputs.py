"""What a VQ tokenizer takes at its door, raw values and tokens in their several forms, and gives.

Token ids (int64) are the only contract between tokenizers and the 4M model; neither imports the
other.

Maps go in and come out as maps; vectors (global embeddings, poses) as vectors, their tokens flat.
Bad values are refused here, before they can fail somewhere inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ShapeError
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD
from fourm_lite.tokenization.vq.config import TokenizerConfig

Raw = TypeVar("Raw")


class Tokenizer(Protocol[Raw]):
    """Turns raw values into token ids and back; `Raw` is a Tensor for images, strings for text."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        ...

    def tokenize(self, raw: Raw) -> Tensor:
        """Token ids int64 of raw values."""
        ...

    def detokenize(self, tokens: Tensor, **options: Any) -> Raw:
        """Raw values of token ids."""
        ...


@dataclass(frozen=True)
class Quantized:
    """Latents snapped to their codes.

    Shapes:
        latents: float[B, latent_dim, Hq, Wq], code vectors (straight-through while training)
        tokens: int64[B, Hq, Wq], or int64[B, heads, Hq, Wq] with several codebooks
        loss: float[], the weighted commitment loss; 0 outside the training step
    """

    latents: Tensor
    tokens: Tensor
    loss: Tensor


def as_tensor(values: Any) -> Tensor:
    """An array or a tensor as a tensor.

    Raises:
        ShapeError: it is something else, or an array of no numbers
    """
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise ShapeError(f"expected a tensor or an array, got {type(values).__name__}")
    try:
        # A copy: torch knows neither foreign byte orders nor negative strides
        return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise ShapeError(f"expected numbers, got an array of {values.dtype}") from error


def checked_values(x: Tensor | npt.NDArray[Any], config: TokenizerConfig) -> Tensor:
    """Raw values in the form of a map.

    Shapes:
        x: int[B, H, W] labels with `n_labels`, else float[B, C, H, W] or float[B, C]
        returns: int64[B, H, W] or float[B, C, H, W]
    Raises:
        ShapeError: another shape, kind of number or number of channels; a label out of range
    """
    x = as_tensor(x)
    if config.n_labels is not None:
        return _checked_labels(x, config.n_labels)
    if config.one_hot and not x.is_floating_point() and x.ndim in (3, 4):
        return one_hot(x, config.n_channels)
    if x.ndim == 2:
        x = x[:, :, None, None]
    if x.ndim != 4 or x.shape[1] != config.n_channels or not x.is_floating_point():
        raise ShapeError(
            f"this tokenizer expects float[B, {config.n_channels}, H, W] "
            f"(or float[B, {config.n_channels}] vectors), got {_spelled(x)}"
        )
    return x


def check_finite(x: Tensor) -> None:
    """Refuses raw values that are NaN or infinite: their nearest code would be the first one.

    Raises:
        ShapeError: there are some
    """
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ShapeError(
            f"a tokenizer expects finite numbers, got {bad} of {x.numel()} that are NaN or "
            "infinite; replace them or leave the sample out"
        )


def one_hot(x: Tensor, classes: int) -> Tensor:
    """Class maps int[B, H, W] or int[B, 1, H, W] as float[B, classes, H, W].

    Raises:
        ShapeError: another shape, or a class that is not there
    """
    maps = x[:, 0] if x.ndim == 4 and x.shape[1] == 1 else x
    labels = _checked_labels(maps, classes)
    return rearrange(torch.nn.functional.one_hot(labels, classes), "b h w c -> b c h w").float()


def undone_std(x: Tensor) -> Tensor:
    """An ImageNet-standardised image in [-1, 1]: float[B, 3, H, W]."""
    mean, std = (x.new_tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return 2 * (x * std + mean) - 1


def tokens_as_map(
    tokens: Tensor | npt.NDArray[Any],
    config: TokenizerConfig,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Tokens in the form of a map, whether they come flat or as a map.

    Shapes:
        tokens: int64[B, Hq, Wq], int64[B, heads, Hq, Wq], or flat int64[B, L]
        returns: int64[B, Hq, Wq], or int64[B, heads, Hq, Wq] with several codebooks
    Raises:
        ShapeError: another shape or kind of number; an id outside the codebook; an unknown grid
    """
    heads, tokens = config.num_codebooks, as_tensor(tokens)
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ShapeError(f"tokens are whole numbers, got {_spelled(tokens)}")
    tokens = tokens.long()
    if tokens.ndim == 2:
        height, width = flat_grid(tokens.shape[1], config, grid)
        tokens = rearrange(tokens, "b (n h w) -> b n h w", n=heads, h=height, w=width)
        tokens = tokens.squeeze(1) if heads == 1 else tokens
    one, several = "int64[B, Hq, Wq]", f"int64[B, {heads}, Hq, Wq]"
    if tokens.ndim != (3 if heads == 1 else 4) or (heads > 1 and tokens.shape[1] != heads):
        raise ShapeError(
            f"this tokenizer's tokens are {one if heads == 1 else several} or flat int64[B, L], "
            f"got {_spelled(tokens)}"
        )
    check_range(tokens, config.codebook_size, "token", "codebook")
    return tokens


def flat_grid(
    length: int, config: TokenizerConfig, grid: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width of a flat row of tokens: as given, the config's own grid, or a square.

    Raises:
        ShapeError: none of these fits
    """
    heads = config.num_codebooks
    places = length // heads
    side = math.isqrt(places)
    candidates = [config.grid(), (side, side)] if grid is None else [grid]
    for height, width in candidates:
        if places > 0 and height * width * heads == length:
            return height, width
    raise ShapeError(
        f"{length} tokens of {heads} codebook(s) do not fill "
        f"{'a square' if grid is None else f'the grid {grid}'}; pass grid=(height, width)"
    )


def _checked_labels(x: Tensor, n_labels: int) -> Tensor:
    if x.ndim != 3 or x.is_floating_point() or x.dtype == torch.bool:
        raise ShapeError(
            f"this tokenizer expects a label map int64[B, H, W] of {n_labels} labels, "
            f"got {_spelled(x)}"
        )
    check_range(x.long(), n_labels, "label", "table of labels")
    return x.long()


def check_range(ids: Tensor, count: int, what: str, where: str) -> None:
    """Refuses numbers that a table has no row for.

    Raises:
        ShapeError: there are some
    """
    if ids.numel() == 0:
        return
    low, high = (int(v) for v in ids.aminmax())
    if low < 0 or high >= count:
        raise ShapeError(
            f"{what}s lie in 0..{count - 1} (size of the {where}), got values in {low}..{high}"
        )


def _spelled(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def tokens_in(tokens: Tensor, vocab_size: int) -> Tensor:
    """Flat tokens int64[B, L] whose ids are all known.

    Raises:
        ShapeError: another shape or kind of number; an id outside the codebook
    """
    ids = torch.as_tensor(tokens)
    if ids.ndim != 2 or ids.is_floating_point():
        raise ShapeError(f"tokens are int64[B, L], got {_spelled(ids)}")
    check_range(ids, vocab_size, "token", "codebook")
    return ids.long()
