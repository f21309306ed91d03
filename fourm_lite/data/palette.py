"""What formulas give for a picture: its main colours, numbers of it as a whole, and Canny edges.

Deterministic: colours start from median cut and are refined by k-means; no random draw. Unusual:
thresholds of edges are fractions of the largest possible gradient, so they do not depend on the
picture.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError, check_shape

Floats = npt.NDArray[np.float64]


def median_cut(colors: Floats, count: int) -> Floats:
    """`count` means of boxes that halve the pixels along the widest channel, widest box first.

    Shapes:
        colors: float[N, 3] -> float[<= count, 3]
    Source:
        Color Image Quantization for Frame Buffer Display (Heckbert 1982)
    """
    boxes = [colors]
    while len(boxes) < count:
        spans = [float(np.ptp(box, axis=0).max()) * len(box) ** 0.5 for box in boxes]
        widest = int(np.argmax(spans))
        if spans[widest] == 0.0:
            break
        box = boxes.pop(widest)
        channel = int(np.argmax(np.ptp(box, axis=0)))
        box = box[np.argsort(box[:, channel], kind="stable")]
        half = len(box) // 2
        boxes += [box[:half], box[half:]]
    return np.stack([box.mean(axis=0) for box in boxes])


def palette(image: npt.NDArray[np.uint8], count: int = 7, *, rounds: int = 6) -> list[list[int]]:
    """The main colours of a picture, the most frequent first.

    Shapes:
        image: uint8[H, W, 3]
        returns: at most `count` [r, g, b], each 0..255
    Raises:
        ConfigError: `count` is below 1
    """
    if count < 1:
        raise ConfigError(f"a palette needs at least one colour, got count={count}")
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 3136)))  # about 56x56 pixels
    colors = image[::step, ::step].reshape(-1, 3).astype(np.float64)
    centers = median_cut(colors, count)
    for _ in range(rounds):
        nearest = _nearest(colors, centers)
        counts = np.bincount(nearest, minlength=len(centers))
        sums = np.stack(
            [np.bincount(nearest, colors[:, c], minlength=len(centers)) for c in range(3)], axis=1
        )
        used = counts > 0
        centers[used] = sums[used] / counts[used, None]
    counts = np.bincount(_nearest(colors, centers), minlength=len(centers))
    order = np.argsort(-counts, kind="stable")
    return [[round(float(c)) for c in centers[i]] for i in order if counts[i] > 0]


def _nearest(colors: Floats, centers: Floats) -> npt.NDArray[np.int64]:
    distance = (centers**2).sum(1)[None] - 2.0 * colors @ centers.T
    return distance.argmin(axis=1)


def describe(image: npt.NDArray[np.uint8], captions: tuple[str, ...] = ()) -> dict[str, float]:
    """Numbers of a whole picture under the names of 4M's metadata.

    Shapes:
        image: uint8[H, W, 3], at its original size
    Units:
        brightness, contrast: mean and standard deviation of the luminance, 0..255
        saturation: mean of HSV's S, 0..255; entropy: bits of the luminance histogram, 0..8
        colorfulness: Hasler and Suesstrunk 2003
    """
    rgb = image.astype(np.float64)
    gray = rgb @ np.array([0.299, 0.587, 0.114])
    top, bottom = rgb.max(axis=2), rgb.min(axis=2)
    saturation = np.where(top > 0, (top - bottom) / np.maximum(top, 1.0), 0.0)
    histogram = np.bincount(gray.astype(np.uint8).ravel(), minlength=256) / gray.size
    filled = histogram[histogram > 0]
    out = {
        "original_width": float(image.shape[1]),
        "original_height": float(image.shape[0]),
        "colorfulness": _colorfulness(rgb),
        "brightness": float(gray.mean()),
        "contrast": float(gray.std()),
        "saturation": float(saturation.mean() * 255.0),
        "entropy": float(-(filled * np.log2(filled)).sum()) + 0.0,
    }
    if captions:
        out["caption_n_chars"] = float(len(captions[0]))
        out["caption_n_words"] = float(len(captions[0].split()))
    return out


def _colorfulness(rgb: Floats) -> float:
    rg = rgb[..., 0] - rgb[..., 1]
    yb = 0.5 * (rgb[..., 0] + rgb[..., 1]) - rgb[..., 2]
    deviation = float(np.hypot(rg.std(), yb.std()))
    return deviation + 0.3 * float(np.hypot(rg.mean(), yb.mean()))


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
