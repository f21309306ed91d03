"""GeoTIFF tiles: bands as they are, standardised; what is no tile is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fourm_lite.errors import FourMError, ReadError, ShapeError
from fourm_lite.modalities.array_codecs import RasterCodec
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.forks import STATISTICS, TERRAMIND_MODALITIES
from fourm_lite.modalities.spec import Crop
from fourm_lite.reading.regular import budget, set_budget

rasterio = pytest.importorskip("rasterio")

CODEC = RasterCodec(mean=(10.0, 20.0), std=(2.0, 4.0), bands=("VV", "VH"))


def tile(values, **profile):
    values = np.asarray(values)
    count, height, width = values.shape
    with rasterio.MemoryFile() as file:
        with file.open(
            driver="GTiff", count=count, height=height, width=width, dtype=values.dtype,
            transform=rasterio.Affine(10, 0, 0, 0, -10, 0), crs="EPSG:32632", **profile,
        ) as raster:  # fmt: skip
            raster.write(values)
        return file.read()


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32", "float64"])
@pytest.mark.parametrize("form", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16},
                                  {"compress": "deflate", "interleave": "pixel"}])  # fmt: skip
def test_bands_of_any_type_and_form_are_standardised(dtype, form):
    values = np.random.default_rng(0).integers(0, 3000, (2, 32, 48)).astype(dtype)

    read = CODEC.read(tile(values, **form))

    mean, std = np.array([[[10.0]], [[20.0]]]), np.array([[[2.0]], [[4.0]]])
    assert read.dtype == torch.float32
    np.testing.assert_allclose(read.numpy(), (values - mean) / std, rtol=1e-6)


def test_a_crop_is_cut_mirrored_and_resized_as_the_whole_would_be():
    values = np.random.default_rng(0).normal(size=(2, 32, 32)).astype("float32")
    whole = CODEC.read(tile(values))

    part = CODEC.read(tile(values), Crop(top=4, left=8, height=16, width=8, hflip=True))
    half = CODEC.read(tile(values), Crop(top=0, left=0, height=32, width=32, size=16))

    torch.testing.assert_close(part, whole[:, 4:20, 8:16].flip(-1))
    assert half.shape == (2, 16, 16)
    torch.testing.assert_close(half.mean(), whole.mean(), atol=0.02, rtol=0)


def test_pixels_without_data_are_the_mean_of_their_band_and_none_but_those_is_an_error():
    values = np.full((2, 8, 8), 30.0, "float32")
    values[0, :4], values[1, 0, 0] = -9999, np.nan

    read = CODEC.read(tile(values, nodata=-9999))

    assert (read[0, :4] == 0).all()
    assert (read[0, 4:] == 10).all()
    assert read[1, 0, 0] == 0
    with pytest.raises(ReadError, match="the tile is empty"):
        CODEC.read(tile(np.full((2, 8, 8), -1, "int16"), nodata=-1))


@pytest.mark.parametrize("data", [b"", b"no tile", b"II*\0" + b"\xff" * 40,
                                  b"<VRTDataset rasterXSize='1' rasterYSize='1'/>"])  # fmt: skip
def test_what_is_no_tile_is_told(data):
    with pytest.raises(ReadError, match="expected a GeoTIFF tile"):
        CODEC.read(data)


def test_other_bands_and_more_than_is_read_at_once_are_told():
    with pytest.raises(ShapeError, match=r"a tile of 2 bands \(VV, VH\), got 3"):
        CODEC.read(tile(np.zeros((3, 8, 8), "int16")))
    before = budget().bytes
    set_budget(bytes=1000)
    try:
        with pytest.raises(ReadError, match="larger than is read at once"):
            CODEC.read(tile(np.zeros((2, 32, 32), "int16")))
    finally:
        set_budget(bytes=before)
    with pytest.raises(FourMError, match="read and not written"):
        CODEC.write(torch.zeros(2, 8, 8))


@pytest.mark.parametrize("name", [n for n in STATISTICS["v1"] if n.startswith("untok_")])
def test_the_pixels_of_terramind_are_read_from_tiles_and_shown(name):
    codec, held = codec_of(TERRAMIND_MODALITIES[name]), STATISTICS["v1"][name]
    values = np.stack(
        [np.full((8, 8), m + s, "float32") for m, s in zip(held.mean, held.std, strict=True)]
    )

    read = codec.read(tile(values))

    torch.testing.assert_close(read, torch.ones_like(read), atol=1e-4, rtol=0)
    assert codec.picture(read).size == (8, 8)
