"""Canny edges in torch: smooth, differentiate, thin, and follow weak edges from strong ones.

Unusual: thresholds are fractions of the largest possible gradient, so they do not depend on the
picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError, check_shape

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(image: Tensor) -> Tensor:
    """Brightness of RGB pixels: float[..., 3, H, W] -> float[..., H, W]."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device)
    return torch.einsum("...chw,c->...hw", image, weights)


def gaussian_blur(gray: Tensor, sigma: float) -> Tensor:
    """A separable Gaussian, its kernel cut at four sigma, borders mirrored.

    Shapes:
        gray: float[B, H, W] -> the same
    """
    radius = min(math.ceil(4 * sigma), min(gray.shape[-2:]) - 1)
    if radius < 1:
        return gray
    offsets = torch.arange(-radius, radius + 1, dtype=gray.dtype, device=gray.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(gray[:, None], (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel[None, None, :, None])
    return F.conv2d(x, kernel[None, None, None, :])[:, 0]


def sobel(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical derivative, in grey levels a pixel.

    Shapes:
        gray: float[B, H, W] -> two of the same
    """
    kernel = gray.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8.0
    x = F.pad(gray[:, None], (1, 1, 1, 1), mode="replicate")
    both = F.conv2d(x, torch.stack([kernel, kernel.T])[:, None])
    return both[:, 0], both[:, 1]


def thin(dx: Tensor, dy: Tensor) -> Tensor:
    """Gradient size where it is a maximum along its own direction, else 0.

    Shapes:
        dx, dy: float[B, H, W] -> float[B, H, W]
    """
    size = torch.hypot(dx, dy)
    around = F.pad(size, (1, 1, 1, 1))
    h, w = size.shape[-2:]

    def shifted(down: int, right: int) -> Tensor:
        return around[:, 1 + down : 1 + down + h, 1 + right : 1 + right + w]

    # Four directions by tan(22.5 degrees): across, down, and the two diagonals.
    steep, flat = math.tan(math.pi * 3 / 8), math.tan(math.pi / 8)
    ax, ay = dx.abs(), dy.abs()
    same_sign = dx * dy > 0
    across, down = ay <= flat * ax, ay >= steep * ax
    keep = torch.zeros_like(across)
    for where, step in (
        (across, (0, 1)),
        (down & ~across, (1, 0)),
        (~across & ~down & same_sign, (1, 1)),
        (~across & ~down & ~same_sign, (1, -1)),
    ):
        # ">" on one side, ">=" on the other: a plateau of two pixels leaves one line, not none.
        top = (size > shifted(-step[0], -step[1])) & (size >= shifted(*step))
        keep |= where & top
    return size * keep


def follow(strong: Tensor, weak: Tensor) -> Tensor:
    """The weak pixels that touch a strong one through other weak ones (eight neighbours).

    Shapes:
        strong, weak: bool[B, H, W] -> bool[B, H, W]
    """
    weak = F.pad(weak, (1, 1, 1, 1))  # so that a step over the border finds nothing
    edges = F.pad(strong, (1, 1, 1, 1)) & weak
    width = weak.shape[-1]
    steps = [d * width + r for d in (-1, 0, 1) for r in (-1, 0, 1) if d or r]
    around = torch.tensor(steps, device=weak.device)
    flat, allowed = edges.flatten(), weak.flatten()
    front = flat.nonzero()[:, 0]
    while len(front):  # each pixel is in the front once: linear in the edges, not in the picture
        near = (front[:, None] + around).flatten()
        front = near[allowed[near] & ~flat[near]].unique()
        flat[front] = True
    return flat.view(edges.shape)[:, 1:-1, 1:-1]


def canny(image: Tensor, *, sigma: float = 1.4, low: float = 0.04, high: float = 0.10) -> Tensor:
    """Thin edges of a batch of pictures.

    Shapes:
        image: float[B, 3, H, W] or float[B, 1, H, W], in [0, 1]
        returns: bool[B, H, W]
    Units:
        sigma: pixels
        low, high: fractions of the steepest step from 0 to 1 that Sobel can see (0.5 a pixel)
    Raises:
        ConfigError: the thresholds are out of order
    Source:
        A Computational Approach to Edge Detection (Canny 1986)
    """
    if not 0.0 <= low <= high:
        raise ConfigError(f"canny needs 0 <= low <= high, got low={low}, high={high}")
    check_shape("canny", image, (None, None, None, None))
    gray = luminance(image) if image.shape[1] == 3 else image[:, 0]
    size = thin(*sobel(gaussian_blur(gray.float(), sigma))) / 0.5
    return follow(size >= max(high, 1e-6), size >= max(low, 1e-6))
