"""Pictures to network inputs where no library's file says how, with Pillow and torch only.

Index and query must go through one path: a resize with another antialiasing moves a CLIP vector to
cosine 0.94. So every step that the libraries differ in is a field here; where a network comes with
its own file, `image_configs.py` lets its own library do it. No torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.modalities.pictures import PictureSource, decode

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
# squash: both edges to `size`; shortest: the short edge to size[0], the long one truncated;
# cover: keep the ratio, rounded, at least `size`; none: as it came
Resize = Literal["none", "squash", "shortest", "cover"]
# pillow: on uint8, antialiased; float: torch on [0, 1], antialiased; plain: torch, not antialiased
Engine = Literal["pillow", "float", "plain"]
Size = tuple[int, int]


def grey_picture(width: int = 64, height: int = 64) -> Image:
    """A picture to find out with what a network gives or does not take."""
    from PIL import Image as pillow

    return pillow.new("RGB", (width, height), (127, 127, 127))


class OneByOne:
    """Prepares every picture by itself."""

    def __call__(self, picture: PictureSource) -> Tensor:
        """The network's input for one picture, float32[3, H, W]."""
        raise NotImplementedError

    def batch(self, pictures: Sequence[PictureSource]) -> dict[str, Tensor]:
        """The named inputs of a batch.

        Raises:
            ShapeError: the pictures end up with different sizes (`resize="none"` without a crop)
        """
        prepared = [self(picture) for picture in pictures]
        if len({p.shape for p in prepared}) > 1:
            raise one_size(tuple(p.shape[1:]) for p in prepared)
        return {"pixel_values": torch.stack(prepared)}


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess(OneByOne):
    """Resize, crop, scale and normalise, in the order and with the rounding of one library.

    Shapes:
        one picture -> float32[3, H, W]; `batch` -> {"pixel_values": float32[B, 3, H, W]}
    Units:
        values become `(pixel * scale - mean) / std`, pixel in 0..255
    """

    resize: Resize = "shortest"
    size: Size = (224, 224)
    interpolation: Interpolation = "bicubic"
    crop: Size | None = (224, 224)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    engine: Engine = "pillow"
    # An odd difference: transformers rounds down, torchvision rounds half to even
    centering: Literal["floor", "round"] = "round"

    def __call__(self, picture: PictureSource) -> Tensor:
        """The network's input for one picture, float32[3, H, W]."""
        image = decode(picture)
        if self.engine == "pillow":
            values = self._cropped(self._resized_by_pillow(image))
            return self._normalized(values.float() * self.scale)
        values = _to_tensor(image).float() * self.scale
        return self._normalized(self._cropped(self._resized_by_torch(values)))

    def _target(self, height: int, width: int) -> Size:
        if self.resize == "none":
            return height, width
        if self.resize == "squash":
            return self.size
        if self.resize == "shortest":
            short, long = sorted((height, width))
            scaled = int(self.size[0] * long / short)
            return (self.size[0], scaled) if height <= width else (scaled, self.size[0])
        ratios = height / self.size[0], width / self.size[1]
        return round(height / min(ratios)), round(width / min(ratios))

    def _resized_by_pillow(self, image: Image) -> Tensor:
        from PIL import Image as pillow

        height, width = self._target(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize(
                (width, height), resample=pillow.Resampling[self.interpolation.upper()]
            )
        return _to_tensor(image)

    def _resized_by_torch(self, values: Tensor) -> Tensor:
        target = self._target(values.shape[1], values.shape[2])
        if target == tuple(values.shape[1:]):
            return values
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(
                f"the float resize knows bilinear and bicubic, got '{self.interpolation}'"
            )
        resized = F.interpolate(
            values[None],
            size=target,
            mode=self.interpolation,
            align_corners=False,
            antialias=self.engine == "float",
        )
        return resized[0]

    def _cropped(self, values: Tensor) -> Tensor:
        if self.crop is None:
            return values
        values = self._padded(values, self.crop)
        top, left = (
            (have - want) // 2 if self.centering == "floor" else round((have - want) / 2)
            for have, want in zip(values.shape[1:], self.crop, strict=True)
        )
        return values[:, top : top + self.crop[0], left : left + self.crop[1]]

    def _padded(self, values: Tensor, crop: Size) -> Tensor:
        missing = [max(want - have, 0) for have, want in zip(values.shape[1:], crop, strict=True)]
        if not any(missing):
            return values
        # transformers puts the odd pixel before, torchvision after
        top, left = ((m + 1) // 2 if self.centering == "floor" else m // 2 for m in missing)
        return F.pad(values, (left, missing[1] - left, top, missing[0] - top))

    def _normalized(self, values: Tensor) -> Tensor:
        return (values - _column(self.mean)) / _column(self.std)


def one_size(sizes: Iterable[tuple[int, ...]]) -> ShapeError:
    """The error for pictures that do not fit into one batch."""
    return ShapeError(
        f"pictures of one batch must have one size, got {sorted(set(sizes))}; "
        f"set a crop or embed with batch_size=1"
    )


def _to_tensor(image: Image) -> Tensor:
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


def _column(values: tuple[float, ...]) -> Tensor:
    return rearrange(torch.tensor(values, dtype=torch.float32), "c -> c 1 1")
