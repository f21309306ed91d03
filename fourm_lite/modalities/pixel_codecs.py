"""Codecs of pictures: colours, depth, normals, yes-or-no masks, as normalised pixels.

Every codec is a frozen value that fits `spec.Codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.modalities.legend import Key
from fourm_lite.modalities.pictures import (
    MAX_PIXELS,
    Resample,
    cut,
    cut_deep,
    open_picture,
    png,
    to_gray,
    to_rgb,
)
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD, Crop

if TYPE_CHECKING:
    from PIL.Image import Image

Normalization = Literal["inception", "imagenet", "none"]

BEYOND = 10.0
"""No normalised pixel is as far from 0; photos in 0..255 are."""

# Mean and standard deviation of red, green and blue in 0..1.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def _constants(name: str, channels: int) -> tuple[Tensor, Tensor]:
    mean, std = NORMALIZATIONS[name]
    return torch.tensor(mean[:channels]).view(-1, 1, 1), torch.tensor(std[:channels]).view(-1, 1, 1)


def normalize(image: Tensor, name: Normalization) -> Tensor:
    """Pixels in 0..1, shifted and scaled a channel.

    Shapes:
        image: float32[..., C, H, W]
    """
    mean, std = _constants(name, image.shape[-3])
    return (image - mean.to(image)) / std.to(image)


def denormalize(image: Tensor, name: Normalization) -> Tensor:
    """The pixels in 0..1 behind `normalize`; what left that range is clamped.

    Shapes:
        image: float32[..., C, H, W]
    """
    mean, std = _constants(name, image.shape[-3])
    return (image * std.to(image) + mean.to(image)).clamp(0, 1)


def not_normalized(values: Tensor, name: Normalization) -> str:
    """Why floats are no normalised pixels, as the rest of a sentence; "" where they may be.

    Shapes:
        values: float[...], all of one picture or of a batch
    """
    if name == "none" or not values.numel():
        return ""
    low, high = (float(v) for v in values.aminmax())
    # Photos have pixels darker than the mean, so that their normalised numbers are not all in 0..1
    if low >= -BEYOND and high <= BEYOND and not (low >= 0 and high <= 1 and low < high):
        return ""
    return (
        f"expects floats that are normalised ('{name}': below 0 where a pixel is darker than the "
        f"mean), got {low:g}..{high:g}; give the picture as uint8, PIL or a file, or normalise it "
        "(fourm_lite.modalities.codecs.normalize)"
    )


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """Colour or grey pictures as normalised pixels.

    Units:
        channels: 3 (colour) or 1 (grey)
        scale: what one step of the file is worth; 1/65535 keeps 16 bits of a grey picture
        background: shown where a picture is transparent
    Shapes:
        read: float32[C, H, W]
    """

    channels: int = 3
    normalization: Normalization = "inception"
    scale: float = 1 / 255
    resample: Resample = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Refuses what no picture has."""
        if self.channels not in (1, 3):
            raise ConfigError(f"a picture has 1 or 3 channels, got {self.channels}")
        check_choice("normalization", self.normalization, of=NORMALIZATIONS)
        if self.channels == 1 and self.normalization == "imagenet":
            raise ConfigError(
                "'imagenet' is for colour; take 'inception' or 'none' for one channel"
            )

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The pixels of a picture file."""
        return self.from_picture(open_picture(data, max_pixels=self.max_pixels), crop)

    def from_picture(self, picture: Image, crop: Crop | None = None) -> Tensor:
        """The pixels of a picture that is open already."""
        if self.channels == 1 and self.scale < 1 / 256:
            image = torch.from_numpy(cut_deep(picture, crop, self.resample))[None] * self.scale
        else:
            convert = to_rgb if self.channels == 3 else to_gray
            part = cut(convert(picture, self.background), crop, self.resample)
            image = _pixels(part) * (255 * self.scale)
        return normalize(image, self.normalization)

    def write(self, value: Tensor) -> bytes:
        """A PNG file of the pixels, 16 bits where `scale` asks for them."""
        if self.channels == 1 and self.scale < 1 / 256:
            steps = denormalize(as_image(value, 1), self.normalization) / self.scale
            return _png16(steps[0])
        return png(self.picture(value))

    def picture(self, value: Tensor) -> Image:
        """The pixels as a picture."""
        image = denormalize(as_image(value, self.channels), self.normalization)
        return to_picture(image / (255 * self.scale) if self.scale >= 1 / 256 else image)


def _pixels(picture: Image) -> Tensor:
    """uint8 pixels as float32[C, H, W] in 0..1."""
    array = np.array(picture)
    array = array[..., None] if array.ndim == 2 else array
    return rearrange(torch.from_numpy(array), "h w c -> c h w").float() / 255


def as_image(value: Tensor, channels: int) -> Tensor:
    """One picture on the CPU; a batch of one is taken out of its batch.

    Raises:
        ShapeError: it is not float32[channels, H, W]
    """
    image = value.detach().float().cpu()
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != channels:
        raise ShapeError(f"expected float32[{channels}, H, W], got {list(value.shape)}")
    return image


def to_picture(image: Tensor) -> Image:
    """Pixels in 0..1 as an 8-bit picture.

    Shapes:
        image: float32[1 or 3, H, W]
    """
    from PIL import Image

    steps = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    array = rearrange(steps, "c h w -> h w c").numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _png16(steps: Tensor) -> bytes:
    from PIL import Image

    array = steps.clamp(0, 65535).round().numpy().astype(np.uint16)
    return png(Image.fromarray(array))


@dataclass(frozen=True, kw_only=True)
class NormalCodec(ImageCodec):
    """Surface normals in -1..1 as colours; a mirrored normal points the other way in x.

    Shapes:
        read: float32[3, H, W]
    """

    def from_picture(self, picture: Image, crop: Crop | None = None) -> Tensor:
        """The normals of a picture that is open already."""
        part = cut(to_rgb(picture, self.background), crop, self.resample)
        image = _pixels(part)
        if crop is not None and crop.hflip:
            image = torch.cat([1 - image[:1], image[1:]])
        return normalize(image, self.normalization)


def standardize_depth(depth: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Depth less its mean, over its deviation, both of the middle 80 % of its values.

    Shapes:
        depth: float32[..., H, W], one picture
    Source:
        MultiMAE (Bachmann et al. 2022), appendix A
    """
    values = depth.flatten().sort().values
    middle = values[int(0.1 * len(values)) : int(0.9 * len(values))]
    if len(middle) < 2:
        middle = values
    variance = middle.var() if len(middle) > 1 else middle.new_zeros(())
    return (depth - middle.mean()) / torch.sqrt(variance + epsilon)


@dataclass(frozen=True, kw_only=True)
class DepthCodec:
    """16-bit depth, standardised a picture unless `standardize` is off.

    Shapes:
        read: float32[1, H, W]
    """

    standardize: bool = True
    resample: Resample = "bicubic"
    max_pixels: int = MAX_PIXELS

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The depth of a 16-bit PNG or TIFF file; 8 bits are spread over the same range."""
        return self.from_picture(open_picture(data, max_pixels=self.max_pixels), crop)

    def from_picture(self, picture: Image, crop: Crop | None = None) -> Tensor:
        """The depth of a picture that is open already."""
        depth = torch.from_numpy(cut_deep(picture, crop, self.resample))[None] / 65535
        return standardize_depth(depth) if self.standardize else depth

    def write(self, value: Tensor) -> bytes:
        """A 16-bit PNG file; standardised depth is stretched over the whole range."""
        depth = as_image(value, 1)[0]
        return _png16((_stretch(depth) if self.standardize else depth) * 65535)

    def picture(self, value: Tensor) -> Image:
        """Near is dark, far is bright, stretched over the whole range."""
        return to_picture(_stretch(as_image(value, 1)))

    def legend(self, value: Tensor) -> tuple[Key, ...]:
        """What dark and bright mean."""
        return (Key("near", color=(0, 0, 0)), Key("far", color=(255, 255, 255)))


def _stretch(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class MaskCodec:
    """Yes-or-no masks, such as SAM's cut to the box of a thing.

    Shapes:
        read: float32[1, H, W] of 0 and 1
    """

    max_pixels: int = MAX_PIXELS

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """1 where a grey picture is bright."""
        part = cut(to_gray(open_picture(data, max_pixels=self.max_pixels)), crop, "nearest")
        return (_pixels(part) >= 0.5).float()

    def write(self, value: Tensor) -> bytes:
        """A black and white PNG file."""
        return png(self.picture(value))

    def picture(self, value: Tensor) -> Image:
        """Black and white."""
        return to_picture((as_image(value, 1) >= 0.5).float())
