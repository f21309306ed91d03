"""A tiny TerraMind with random weights, as its .pt holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.families.masked import TERRAMIND
from fourm_lite.modalities.forks import TERRAMIND_MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM

INPUTS = ("untok_sen2l2a@224", "untok_sen1grd@224", "untok_dem@224", "tok_lulc@224", "coords")
OUTPUTS = ("tok_lulc@224", "tok_ndvi@224", "coords")


def terramind(
    seed: int = 0,
    *,
    inputs: Sequence[str] = INPUTS,
    outputs: Sequence[str] = OUTPUTS,
    **rules: Any,
) -> FourM:
    """One head of 64, so that its sizes follow from its tensors; `rules` in place of its own."""
    config = FourMConfig(
        inputs=tuple(TERRAMIND_MODALITIES[name] for name in inputs),
        outputs=tuple(TERRAMIND_MODALITIES[name] for name in outputs),
        dim=64, encoder_depth=2, decoder_depth=1, num_heads=1, norm_bias=False,
        **{**TERRAMIND.rules, **rules},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FourM(config).init_weights().eval()


def save_tiles(root: Path, count: int = 8) -> Path:
    """Two classes of Sentinel-2 tiles, of which one is bright in the infrared."""
    rng = np.random.default_rng(0)
    for name, level in (("forest", 5000), ("water", 300)):
        for number in range(count):
            values = rng.integers(200, 600, (12, 48, 40)).astype("int16")
            values[7:9] += level
            save_tile(root / name / f"{number}.tif", values)
    return root


def save_tile(path: Path, values: npt.NDArray[Any]) -> Path:
    """A GeoTIFF of bands [C, H, W]."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype,
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as raster:  # fmt: skip
        raster.write(values)
    return path


def terramind_weights() -> dict[str, Tensor]:
    """Its tensors, a target's table under both of its names."""
    return dict(terramind().state_dict())


def save_terramind_tokenizers(root: Path) -> Path:
    """What lies in `tokenizers/` beside a model: classes, numbers of maps, words of places."""
    from fourm_lite.io.files import write_json
    from fourm_lite.io.writing import write_file
    from fourm_lite.tokenization.vq.config import TokenizerConfig
    from fourm_lite.tokenization.vq.vqvae import VQTokenizer

    own: dict[str, Any] = {
        "quant_type": "fsq", "one_hot": True, "latent_dim": 5, "patch_size": 16, "image_size": 64,
        "enc_type": "vit_32x1x2_enc", "dec_type": "vit_32x1x2_dec",
    }  # fmt: skip
    for name, channels, levels in (("LULC", 10, (7, 5, 5, 5, 5)), ("NDVI", 1, (8, 8, 8, 6, 5))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = TokenizerConfig(
                n_channels=channels, levels=levels, codebook_size=math.prod(levels), **own
            )
            tokenizer = VQTokenizer(config)
        write_file(root / name / "model.safetensors", tokenizer.state_dict(), metadata=None)
        write_json(root / name / "config.json", config.to_dict(), indent=2)
    save_places(root / "coords" / "tokenizer.json")
    return root


def save_places(path: Path) -> Path:
    """A vocabulary of whole coordinates, quarters of a degree, as TerraMind's."""
    words = [f"lat={d / 4:.2f}" for d in range(-360, 361)]
    return save_words(path, words + [f"lon={d / 4:.2f}" for d in range(-720, 721)])


def save_words(path: Path, known: Sequence[str], count: int = 0) -> Path:
    """A vocabulary of whole words behind the usual marks, filled up to so many."""
    import tokenizers

    marks = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]"]
    words = [*marks, *known]
    words += [f"filler{i}" for i in range(count - len(words))]
    found = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    found.add_special_tokens(marks)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(str(path))
    return path
