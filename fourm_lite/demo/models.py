"""The model that examples run on: the shipped one, or a small complete family with random weights.

Everything works with random weights, and nothing that they say means anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from fourm_lite.demo.shipped_photos import EXAMPLES, drawings
from fourm_lite.errors import CheckpointError
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import train_text_tokenizer

SHIPPED = "mini"
SIZE, PATCH, CODES, EMBEDDING = 112, 16, 64, 32
_SIDE = SIZE // PATCH
_MLP = "BottleneckMLP/B_2-Wi_64"


def example_model(folder: str | Path = "random_model") -> Path:
    """The shipped model's folder; where none ships, `folder`, into which random weights go."""
    from fourm_lite.io.hub import shipped

    try:
        return shipped(SHIPPED)
    except CheckpointError:
        captions = [d.caption for d in drawings(216, size=8)]
        return write_random_family(Path(folder), [*captions, *EXAMPLES] * 3)


def write_random_family(folder: Path, captions: Iterable[str], *, seed: int = 0) -> Path:
    """A model with its tokenizers beside it; returns the model's folder."""
    if (folder / "model.safetensors").is_file():
        return folder
    place = folder / "tokenizers"
    # torch's initialisers know no generator of their own, so the global one is put back afterwards
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = train_text_tokenizer(list(captions), vocab_size=1400, bins=256, num_sentinels=16)
        for name, config in _tokenizer_configs().items():
            VQTokenizer(config).eval().save(place / name)
        text.save(place / "text" / "tokenizer.json")
        model = FourM(_model_config(text.vocab_size)).init_weights().eval()
        model.save(folder, extra={"note": "random weights", "licence": "Apache-2.0"})
    return folder


def _tokenizer_configs() -> dict[str, TokenizerConfig]:
    vit = TokenizerConfig(
        image_size=SIZE,
        patch_size=PATCH,
        enc_type="vit_96x2x2_enc",
        dec_type="vit_96x2x2_dec",
        codebook_size=CODES,
        latent_dim=16,
    )
    vector = TokenizerConfig(
        image_size=1,
        patch_size=1,
        patch_proj=False,
        n_channels=EMBEDDING,
        enc_type=_MLP,
        dec_type=_MLP,
        quant_type="memcodes",
        codebook_size=CODES,
        num_codebooks=16,
        latent_dim=64,
    )
    return {"rgb": vit, "edge": replace(vit, n_channels=1), "vector_global": vector}


def _model_config(vocab_size: int) -> FourMConfig:
    maps = [_grid(f"tok_{name}@{SIZE}", name) for name in ("rgb", "edge")]
    vector = Modality(
        name="tok_vector_global", kind="grid", vocab_size=CODES, grid=(4, 4), max_tokens=16,
        pos_embed="learned", tokenizer="vector_global", title="Global embedding",
    )  # fmt: skip
    texts = [
        Modality(
            name=name, kind="sequence", vocab_size=vocab_size, max_tokens=24, vocab="text",
            text_format=form, title=title,
        )
        for name, form, title in (
            ("caption", "text", "Caption"),
            ("color_palette", "color_palette", "Colour palette"),
        )
    ]  # fmt: skip
    pixels = Modality(
        name=f"rgb@{SIZE}", kind="pixels", channels=3, image_size=SIZE, patch_size=PATCH,
        grid=(_SIDE, _SIDE), max_tokens=_SIDE**2, directions=IN, title="RGB",
    )  # fmt: skip
    outputs = (*maps, vector, *texts)
    return FourMConfig(
        inputs=(pixels, *outputs), outputs=outputs, dim=96, encoder_depth=3, decoder_depth=3,
        num_heads=4, image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip


def _grid(name: str, tokenizer: str) -> Modality:
    return Modality(
        name=name, kind="grid", vocab_size=CODES, image_size=SIZE, patch_size=PATCH,
        grid=(_SIDE, _SIDE), max_tokens=_SIDE**2, tokenizer=tokenizer, title=tokenizer.title(),
    )  # fmt: skip
