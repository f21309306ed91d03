"""A tiny pipeline with tokenizers, all weights random: text, a picture, class maps, a vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import tiny_model

from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer, train_text_tokenizer

WORDS = ["a red circle", "a blue square on the left", "two green dogs", "v0=1 v1=2"]

PIXELS = Modality(
    name="rgb@32", kind="pixels", channels=3, image_size=32, patch_size=8, grid=(4, 4),
    max_tokens=16, directions=IN,
)  # fmt: skip
RGB = Modality(
    name="tok_rgb@32", kind="grid", vocab_size=32, image_size=32, patch_size=8, grid=(4, 4),
    max_tokens=16, tokenizer="rgb",
)  # fmt: skip
SEMSEG = Modality(
    name="tok_semseg@32", kind="grid", vocab_size=16, image_size=32, patch_size=8, grid=(4, 4),
    max_tokens=16, tokenizer="semseg",
)  # fmt: skip
VECTOR = Modality(
    name="tok_vector_global", kind="grid", vocab_size=24, image_size=32, patch_size=16,
    grid=(2, 2), max_tokens=4, pos_embed="learned", tokenizer="vector_global",
)  # fmt: skip


def sequence(name: str, vocab_size: int, text_format: str = "text") -> Modality:
    return Modality(
        name=name, kind="sequence", vocab_size=vocab_size, max_tokens=24, vocab="text",
        text_format=text_format,
    )  # fmt: skip


def text_tokenizer() -> TextTokenizer:
    return train_text_tokenizer(
        WORDS * 3, vocab_size=1100, classes=["dog"], bins=256, num_sentinels=8
    )


def vq_configs() -> dict[str, TokenizerConfig]:
    mlp = "BottleneckMLP/B_1-Wi_16"
    vit = {"enc_type": "vit_32x2x2_enc", "dec_type": "vit_32x2x2_dec"}  # width, depth, heads
    common = {"image_size": 32, "patch_size": 8, "latent_dim": 8, **vit}
    return {
        "rgb": TokenizerConfig(codebook_size=32, **common),
        "semseg": TokenizerConfig(codebook_size=16, n_channels=4, n_labels=5, **common),
        "vector_global": TokenizerConfig(
            codebook_size=24, n_channels=10, enc_type=mlp, dec_type=mlp, patch_proj=False,
            patch_size=1, image_size=1, quant_type="memcodes", num_codebooks=4, latent_dim=16,
        ),
    }  # fmt: skip


def save_pipeline(folder: Path) -> Path:
    """A model folder with its tokenizers beside it."""
    text = text_tokenizer()
    size = text.vocab_size
    texts = (sequence("caption", size), sequence("color_palette", size, "color_palette"))
    outputs = (RGB, SEMSEG, VECTOR, *texts)
    model = tiny_model(
        inputs=(PIXELS, *outputs), outputs=outputs, image_size=32, patch_size=8, scale=5.0
    )
    model.save(folder)
    for name, config in vq_configs().items():
        torch.manual_seed(len(name))
        VQTokenizer(config).eval().save(folder / "tokenizers" / name)
    (folder / "tokenizers" / "text").mkdir(parents=True)
    text.save(folder / "tokenizers" / "text" / "tokenizer.json")
    return folder


def photo(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
