"""Tiles of the earth (GeoTIFF) of any number of bands, standardised band by band.

rasterio reads them, its GeoTIFF driver alone: no other format, and nothing that names a second
file. Unusual: what a file marks as empty (its nodata value, NaN) becomes the mean of its band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError, FourMError, ReadError, ShapeError
from fourm_lite.modalities.codec_types import Crop
from fourm_lite.reading.budget import budget

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class RasterCodec:
    """Bands as pixels, less their mean, by their deviation.

    Units:
        mean, std: of each band, in the units of the files
        bands: their names, for messages
    Shapes:
        read: float32[C, H, W]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...] = ()

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
        mean, std = (torch.tensor(part)[:, None, None] for part in (self.mean, self.std))
        return self.cut(((values - mean) / std).nan_to_num(nan=0.0), crop)

    def cut(self, values: Tensor, crop: Crop | None) -> Tensor:
        """A crop of pixels that are read already, resized if it says so: float32[C, H, W]."""
        if crop is None:
            return values
        crop.check_inside(values.shape[1], values.shape[2])
        part = values[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if tuple(part.shape[1:]) != crop.output_size:
            part = F.interpolate(
                part[None], crop.output_size, mode="bilinear", antialias=True, align_corners=False
            )[0]
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

        names = ("RED", "GREEN", "BLUE")
        has_colours = all(name in self.bands for name in names)
        shown = value[[self.bands.index(n) for n in names]] if has_colours else value[:1]
        low, high = (torch.quantile(shown.float().flatten(), q) for q in (0.02, 0.98))
        scaled = ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        pixels = (scaled * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if has_colours else pixels[..., 0])


def _bands(data: bytes) -> Tensor:
    """All bands as float32[C, H, W], NaN where the file marks nothing."""
    try:
        from rasterio.errors import RasterioError
        from rasterio.io import MemoryFile
    except ImportError as error:
        raise ConfigError("GeoTIFF tiles need rasterio: pip install rasterio") from error
    if not data:
        raise ReadError("expected a GeoTIFF tile, got 0 bytes")
    try:
        with MemoryFile(data) as file, file.open(driver="GTiff") as raster:
            size = 4 * raster.count * raster.height * raster.width
            if size > budget().bytes:
                raise ReadError(
                    f"a tile of {raster.count} bands of {raster.height}x{raster.width} pixels is "
                    f"larger than is read at once ({budget().bytes} bytes); cut it into tiles"
                )
            read = raster.read(masked=True)
    except (RasterioError, ValueError, OSError) as error:
        if isinstance(error, FourMError):
            raise
        raise ReadError(f"expected a GeoTIFF tile, it cannot be read: {error}") from error
    if np.iscomplexobj(read):
        raise ReadError("expected a GeoTIFF tile of real numbers, it holds complex ones")
    values = torch.from_numpy(np.ma.filled(read.astype(np.float32), np.nan))
    if not bool(torch.isfinite(values).any()):
        raise ReadError("the tile is empty: all of its pixels are marked as nodata")
    return torch.where(torch.isfinite(values), values, torch.nan)
