"""The colours that a picture is made of, and the other numbers that describe a picture as a whole.

Deterministic: colours start from median cut and are refined by k-means; no random draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError

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
