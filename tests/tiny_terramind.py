"""A tiny TerraMind with random weights, as its .pt holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.families.masked import TERRAMIND
from fourm_lite.modalities.forks import TERRAMIND_MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM

INPUTS = ("untok_sen2l2a@224", "untok_sen1grd@224", "untok_dem@224", "tok_lulc@224", "coords")
OUTPUTS = ("tok_lulc@224", "tok_ndvi@224", "coords")


def terramind(seed: int = 0, **rules: Any) -> FourM:
    """One head of 64, so that its sizes follow from its tensors; `rules` in place of its own."""
    config = FourMConfig(
        inputs=tuple(TERRAMIND_MODALITIES[name] for name in INPUTS),
        outputs=tuple(TERRAMIND_MODALITIES[name] for name in OUTPUTS),
        dim=64, encoder_depth=2, decoder_depth=1, num_heads=1, norm_bias=False,
        **{**TERRAMIND.rules, **rules},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FourM(config).init_weights().eval()


def save_tiles(root: Path) -> Path:
    """Two classes of Sentinel-2 tiles, of which one is bright in the infrared."""
    import rasterio

    rng = np.random.default_rng(0)
    for name, level in (("forest", 5000), ("water", 300)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            values = rng.integers(200, 600, (12, 48, 40)).astype("int16")
            values[7:9] += level
            with rasterio.open(
                root / name / f"{number}.tif", "w", driver="GTiff", count=12, height=48, width=40,
                dtype="int16", transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
            ) as raster:  # fmt: skip
                raster.write(values)
    return root


def terramind_weights() -> dict[str, Tensor]:
    """Its tensors, a target's table under both of its names."""
    return dict(terramind().state_dict())
