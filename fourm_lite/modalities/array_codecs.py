"""Codecs of features, token ids, and bands of the earth.

Files that generated or foreign programs wrote are checked before they are believed: no pickle, no
larger allocation than the file is long. GeoTIFF is read by rasterio's driver of that name alone: no
other format, and nothing that names a second file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ConfigError, FourMError, ReadError, ShapeError
from fourm_lite.modalities.class_maps import class_colors, class_legend, colored
from fourm_lite.modalities.legend import Key
from fourm_lite.modalities.pixel_codecs import to_picture
from fourm_lite.modalities.spec import Crop
from fourm_lite.reading.arrays import npy_bytes, read_npy
from fourm_lite.reading.regular import budget

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class FeatureCodec:
    """Another network's features of a picture: an .npy file of numbers.

    The file was made for one crop, so `crop` changes nothing.

    Units:
        channels: numbers a place; None takes any
    Shapes:
        read: float32[C, H, W] | float32[L, E] | float32[E]
    """

    channels: int | None = None

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The numbers of an .npy file."""
        array = read_npy(data)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise FourMError(f"expected finite numbers, got {array.dtype} with NaN or worse")
        return self._checked(torch.from_numpy(array.astype(np.float32)))

    def write(self, value: Tensor) -> bytes:
        """An .npy file of half precision where that loses nothing, else of float32."""
        array = self._checked(value).detach().float().cpu().numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return npy_bytes(half if np.array_equal(half.astype(np.float32), array) else array)

    def picture(self, value: Tensor) -> Image | str:
        """The three main directions of a feature map as colours; a vector's numbers, red above 0.

        Several vectors, which lie on no map, are told in a text.
        """
        features = self._checked(value).detach().float().cpu()
        if features.ndim == 1:
            return _signed(features)
        if features.ndim != 3:
            return f"features {list(value.shape)}, length {float(features.norm()):.3f}"
        _, height, width = features.shape
        return to_picture(_main_directions(features, height, width))

    def legend(self, value: Tensor) -> tuple[Key, ...]:
        """What the colours of `picture` mean."""
        if value.ndim == 3:
            return (Key("three main directions of the features as red, green and blue"),)
        sides = (Key("above 0", color=(255, 0, 0)), Key("below 0", color=(0, 0, 255)))
        return (Key(f"{len(value)} numbers"), *sides) if value.ndim == 1 else ()

    def _checked(self, value: Tensor) -> Tensor:
        place = 0 if value.ndim == 3 else -1
        if value.ndim not in (1, 2, 3) or self.channels not in (None, value.shape[place]):
            raise ShapeError(
                f"expected [{self.channels or 'C'}, H, W] or [L, {self.channels or 'E'}], "
                f"got {list(value.shape)}"
            )
        return value


def _signed(vector: Tensor) -> Image:
    """A small square for each number: white is 0, red above, blue below."""
    side = math.isqrt(max(len(vector) - 1, 0)) + 1
    strength = vector / vector.abs().max().clamp_min(1e-12)
    grid = F.pad(strength, (0, side * side - len(vector))).reshape(side, side)
    colors = torch.stack([1 + grid.clamp(max=0), 1 - grid.abs(), 1 - grid.clamp(min=0)])
    return _enlarged(to_picture(colors), cell=8)


def _main_directions(features: Tensor, height: int, width: int) -> Tensor:
    rows = rearrange(features, "c h w -> (h w) c").double()
    rows = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    directions = directions[:3]
    # A singular vector has no sign of its own: the largest entry is made positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = rows @ (directions * largest.sign()).T
    scores = F.pad(scores, (0, 3 - scores.shape[1]))
    low, high = scores.min(0).values, scores.max(0).values
    colors = (scores - low) / (high - low).clamp_min(1e-12)
    return rearrange(colors.float(), "(h w) c -> c h w", h=height, w=width)


@dataclass(frozen=True, kw_only=True)
class TokenCodec:
    """Token ids that a tokenizer made before: an int16 .npy file, one row a crop.

    The file was made for certain crops; the loader takes the row that belongs to its crop, so
    `crop` changes nothing here.

    Units:
        vocab_size: ids are smaller; None takes any
    Shapes:
        read: int64, as stored: [L], or [crops, L]
    """

    vocab_size: int | None = None

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The ids of an .npy file."""
        array = read_npy(data)
        if array.dtype.kind not in "iu":
            raise FourMError(f"expected whole numbers as token ids, got {array.dtype}")
        return self._checked(torch.from_numpy(array.astype(np.int64)))

    def write(self, value: Tensor) -> bytes:
        """An .npy file of int16, or of int32 for a vocabulary beyond it."""
        ids = self._checked(value).detach().cpu().numpy()
        small = ids.size == 0 or int(ids.max()) < 1 << 15
        return npy_bytes(ids.astype(np.int16 if small else np.int32))

    def picture(self, value: Tensor) -> Image:
        """One coloured square a token; the same id has the same colour everywhere."""
        ids = self._checked(value).detach().cpu().reshape(-1).numpy()
        side = math.isqrt(len(ids))
        grid = ids.reshape(side, side) if side * side == len(ids) else ids[None]
        return _enlarged(colored(grid, _id_colors()), cell=16)

    def _checked(self, ids: Tensor) -> Tensor:
        limit = self.vocab_size if self.vocab_size is not None else 1 << 31
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            raise FourMError(
                f"expected token ids 0..{limit - 1}, got {int(ids.min())}..{int(ids.max())}; "
                "were they made by another tokenizer?"
            )
        return ids


def _id_colors() -> npt.NDArray[np.uint8]:
    return class_colors(257)[1:]


def _enlarged(picture: Image, cell: int) -> Image:
    from PIL import Image

    size = (picture.width * cell, picture.height * cell)
    return picture.resize(size, Image.Resampling.NEAREST)


@dataclass(frozen=True, kw_only=True)
class RasterCodec:
    """Bands as pixels, less their mean, by their deviation.

    Units:
        mean, std: of each band, in the units of the files
        bands: their names, for messages
        num_labels: of a map of classes, which is neither standardised nor smoothed
    Shapes:
        read: float32[C, H, W], or int64[1, H, W] of classes
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...] = ()
    num_labels: int | None = None

    def read(self, data: bytes, crop: Crop | None = None) -> Tensor:
        """The standardised pixels of a GeoTIFF file.

        Raises:
            ReadError: it is none, or larger than is read at once
            ShapeError: it has other bands
        """
        values = _bands(data)
        if len(values) != len(self.mean):
            raise ShapeError(
                f"expected a tile of {len(self.mean)} bands ({', '.join(self.bands) or 'in order'})"
                f", got {len(values)}; choose the modality that its bands are"
            )
        if self.num_labels is not None:
            return self.cut(values.nan_to_num(nan=0.0).long(), crop)
        mean, std = self._statistics(values)
        return self.cut(((values - mean) / std).nan_to_num(nan=0.0), crop)

    def restored(self, values: Tensor) -> Tensor:
        """Standardised pixels float[C, H, W] in the units of the files."""
        mean, std = self._statistics(values)
        return values * std + mean

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (values.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return mean, std

    def cut(self, values: Tensor, crop: Crop | None) -> Tensor:
        """A crop of pixels that are read already, resized if it says so: float32[C, H, W]."""
        if crop is None:
            return values
        crop.check_inside(values.shape[1], values.shape[2])
        part = values[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if tuple(part.shape[1:]) != crop.output_size:
            part = _resized(part, crop.output_size)
        return part.flip(-1) if crop.hflip else part

    def write(self, value: Tensor) -> bytes:
        """Not possible: a tile has a place on the earth, which pixels do not know.

        Raises:
            FourMError: always
        """
        raise FourMError("tiles are read and not written; save the numbers with numpy or rasterio")

    def picture(self, value: Tensor) -> Image:
        """Red, green and blue, or the first band in grey, from the 2nd to the 98th percentile."""
        from PIL import Image

        if self.num_labels is not None:
            colours = class_colors(self.num_labels)
            labels = value.reshape(value.shape[-2:]).clamp(0, self.num_labels - 1).numpy()
            return Image.fromarray(colours[labels])
        names = ("RED", "GREEN", "BLUE")
        has_colours = all(name in self.bands for name in names)
        shown = value[[self.bands.index(n) for n in names]] if has_colours else value[:1]
        low, high = (torch.quantile(shown.float().flatten(), q) for q in (0.02, 0.98))
        scaled = ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        pixels = (scaled * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if has_colours else pixels[..., 0])

    def legend(self, value: Tensor) -> tuple[Key, ...]:
        """The classes of a map of classes."""
        if self.num_labels is None:
            return ()
        return class_legend(value.long().clamp(0, self.num_labels - 1), self.num_labels)


def number_of_bands(data: bytes) -> int:
    """How many bands a GeoTIFF file holds.

    Raises:
        ReadError: it is none
    """
    with _opened(data) as raster:
        return int(raster.count)


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bands float[C, H, W] smoothly, classes int64[C, H, W] by the nearest."""
    if not values.is_floating_point():
        return F.interpolate(values[None].double(), size, mode="nearest-exact")[0].long()
    return F.interpolate(values[None], size, mode="bilinear", antialias=True, align_corners=False)[
        0
    ]


def _bands(data: bytes) -> Tensor:
    """All bands as float32[C, H, W], NaN where the file marks nothing."""
    with _opened(data) as raster:
        size = 4 * raster.count * raster.height * raster.width
        if size > budget().bytes:
            raise ReadError(
                f"a tile of {raster.count} bands of {raster.height}x{raster.width} pixels is "
                f"larger than is read at once ({budget().bytes} bytes); cut it into tiles"
            )
        read = raster.read(masked=True)
    if np.iscomplexobj(read):
        raise ReadError("expected a GeoTIFF tile of real numbers, it holds complex ones")
    values = torch.from_numpy(np.ma.filled(read.astype(np.float32), np.nan))
    if not bool(torch.isfinite(values).any()):
        raise ReadError("the tile is empty: all of its pixels are marked as nodata")
    return torch.where(torch.isfinite(values), values, torch.nan)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """An open GeoTIFF; what its reader raises in the block becomes an error of ours."""
    try:
        from rasterio.errors import RasterioError
        from rasterio.io import MemoryFile
    except ImportError as error:
        raise ConfigError("GeoTIFF tiles need rasterio: pip install rasterio") from error
    if not data:
        raise ReadError("expected a GeoTIFF tile, got 0 bytes")
    try:
        with MemoryFile(data) as file, file.open(driver="GTiff") as raster:
            yield raster
    except (RasterioError, ValueError, OSError) as error:
        if isinstance(error, FourMError):
            raise
        raise ReadError(f"expected a GeoTIFF tile, it cannot be read: {error}") from error
