"""Small tokenizer configs of every sort; used by the tests of this folder."""

from __future__ import annotations

from fourm_lite.tokenization.vq.config import TokenizerConfig

MLP = "BottleneckMLP/B_1-Wi_32"
VIT_ENC, VIT_DEC = "vit_32x1x2_enc", "vit_32x1x2_dec"


def global_config(**changes) -> TokenizerConfig:
    """Vectors of 12 numbers as 4 memcodes."""
    values = {
        "n_channels": 12,
        "patch_proj": False,
        "enc_type": MLP,
        "dec_type": MLP,
        "quant_type": "memcodes",
        "codebook_size": 16,
        "num_codebooks": 4,
        "latent_dim": 16,
    }
    return TokenizerConfig(**{**values, **changes})


def image_config(**changes) -> TokenizerConfig:
    """Images of 16x16 as 2x2 cosine codes."""
    values = {
        "image_size": 16,
        "patch_size": 8,
        "enc_type": VIT_ENC,
        "dec_type": VIT_DEC,
        "codebook_size": 24,
        "latent_dim": 8,
    }
    return TokenizerConfig(**{**values, **changes})


def diffusion_config(**changes) -> TokenizerConfig:
    """Images of 32x32 as 4x4 codes, decoded by a narrow UNet."""
    values = {"kind": "DiVAE", "image_size": 32, "dec_type": "unet_patched_32", "n_channels": 1}
    return image_config(**{**values, **changes})
