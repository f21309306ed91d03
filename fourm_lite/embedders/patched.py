"""Preprocessing of networks that keep a picture's shape: SigLIP 2 NaFlex and ViLT.

Both give more than pixels: patches with a mask and a grid, or padded pixels with a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from fourm_lite.embedders.images import (
    ImagePreprocess,
    ImageSource,
    Interpolation,
    Size,
    as_rgb,
    open_image,
)


@dataclass(frozen=True, kw_only=True)
class NaFlexPreprocess:
    """Pictures in their own shape, cut into at most `max_patches` patches.

    Shapes:
        pixel_values float32[B, max_patches, p*p*3], pixel_attention_mask int32[B, max_patches],
        spatial_shapes int64[B, 2] (rows, columns)
    Source:
        SigLIP 2 (Tschannen et al. 2025), section 2.4 "NaFlex"
    """

    patch_size: int = 16
    max_patches: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def batch(self, pictures: Sequence[ImageSource]) -> dict[str, Tensor]:
        """The named inputs of a batch; pictures may have any sizes."""
        patches, shapes = zip(*map(self._patches, pictures), strict=True)
        lengths = torch.tensor([len(p) for p in patches])
        return {
            "pixel_values": torch.stack(
                [F.pad(p, (0, 0, 0, self.max_patches - len(p))) for p in patches]
            ),
            "pixel_attention_mask": (torch.arange(self.max_patches) < lengths[:, None]).int(),
            "spatial_shapes": torch.tensor(shapes),
        }

    def _patches(self, picture: ImageSource) -> tuple[Tensor, Size]:
        image = as_rgb(open_image(picture), "white")
        size = self._size(image.height, image.width)
        pixels = _squashed(image, size, self.interpolation, self.mean, self.std)
        p = self.patch_size
        cut = rearrange(pixels, "c (h p) (w q) -> (h w) (p q c)", p=p, q=p)
        return cut, (size[0] // p, size[1] // p)

    def _size(self, height: int, width: int) -> Size:
        """The largest size in whole patches that the budget allows, found by bisection."""
        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            middle = (low + high) / 2
            rows, columns = (self._count(middle * edge) for edge in (height, width))
            low, high = (middle, high) if rows * columns <= self.max_patches else (low, middle)
        return self._count(low * height) * self.patch_size, self._count(
            low * width
        ) * self.patch_size

    def _count(self, edge: float) -> int:
        return max(1, math.ceil(edge / self.patch_size))


@dataclass(frozen=True, kw_only=True)
class ViltPreprocess:
    """Short edge to `shortest`, long edge capped, both whole multiples of `divisor`; zero padding.

    Shapes:
        pixel_values float32[B, 3, H, W] and pixel_mask int64[B, H, W], H and W the largest
    """

    shortest: int = 384
    divisor: int = 32
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def size(self, height: int, width: int) -> Size:
        """The size that a picture of this height and width is brought to."""
        longest = int(1333 / 800 * self.shortest)
        scale = self.shortest / min(height, width)
        sides = [
            float(self.shortest) if edge == min(height, width) else scale * edge
            for edge in (height, width)
        ]
        if max(sides) > longest:
            sides = [edge * (longest / max(sides)) for edge in sides]
        rows, columns = (int(edge + 0.5) // self.divisor * self.divisor for edge in sides)
        return rows, columns

    def batch(self, pictures: Sequence[ImageSource]) -> dict[str, Tensor]:
        """The named inputs of a batch; smaller pictures are padded at the right and below."""
        pixels = [self._pixels(picture) for picture in pictures]
        height, width = (max(p.shape[axis] for p in pixels) for axis in (1, 2))
        spaces = [(0, width - p.shape[2], 0, height - p.shape[1]) for p in pixels]
        ones = [torch.ones(p.shape[1:], dtype=torch.int64) for p in pixels]
        return {
            "pixel_values": torch.stack([F.pad(p, s) for p, s in zip(pixels, spaces, strict=True)]),
            "pixel_mask": torch.stack([F.pad(o, s) for o, s in zip(ones, spaces, strict=True)]),
        }

    def _pixels(self, picture: ImageSource) -> Tensor:
        image = as_rgb(open_image(picture), "white")
        size = self.size(image.height, image.width)
        return _squashed(image, size, self.interpolation, self.mean, self.std)


def _squashed(
    image: ImageSource,
    size: Size,
    interpolation: Interpolation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    exact = ImagePreprocess(
        resize="squash", size=size, crop=None, interpolation=interpolation, mean=mean, std=std
    )
    return exact(image)
