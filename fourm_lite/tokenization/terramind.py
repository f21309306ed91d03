"""TerraMind's tokenizers from their `.pt`: they ship no config, so that follows from the tensors.

Built in are the levels of their finite quantizers and the noise schedule of the diffusion decoders.
A value is decoded within one deviation of the mean, since every decoded value is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file

DIRECT, DIFFUSION = "7-5-5-5-5", "8-8-8-6-5"
# width of the encoder -> its name
ENCODERS = {512: "vit_s", 768: "vit_b", 1024: "vit_l"}
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "linear",
    "prediction_type": "sample",
    "num_train_timesteps": 1000,
    "zero_terminal_snr": True,
    "clip_sample": True,
    "thresholding": True,
    "dec_type": "unet_patched",
    "patch_size_dec": 4,
}


def is_terramind_tokenizer(weights: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a tokenizer without any of a quantizer."""
    parts = {key.partition(".")[0] for key in weights}
    return {"encoder", "quant_proj", "decoder"} <= parts and "quantize" not in parts


def terramind_tokenizer_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config that the tensors imply, in ml-4m's words.

    Raises:
        ConfigError: an encoder of no known size, or another number of channels to quantize
    """
    stem, latent = weights.get("encoder.proj.weight"), weights["quant_proj.weight"].shape[0]
    width = 0 if stem is None else stem.shape[0]
    if stem is None or stem.ndim != 4 or width not in ENCODERS or latent != 5:
        raise ConfigError(
            f"a tokenizer of TerraMind has an encoder of width {sorted(ENCODERS)} and 5 channels "
            f"to quantize; the file has width {width} and {latent}"
        )
    side, patch = weights["encoder.pos_emb"].shape[-1], stem.shape[-1]
    is_direct = any(key.startswith("post_quant_proj.") for key in weights)
    decoder = {"dec_type": f"{ENCODERS[width]}_dec"} if is_direct else SCHEDULE
    return {
        "class": "VQVAE" if is_direct else "DiVAE",
        "quant_type": "fsq",
        "codebook_size": DIRECT if is_direct else DIFFUSION,
        "latent_dim": latent,
        "n_channels": stem.shape[1],
        "image_size": side * patch,
        "patch_size": patch,
        "enc_type": f"{ENCODERS[width]}_enc",
        "patch_proj": True,
        "post_mlp": any(".post_mlp." in key for key in weights),
        **decoder,
    }


def convert_terramind_tokenizer(weights: Mapping[str, Tensor], folder: str | Path) -> int:
    """Writes config.json and model.safetensors, which `load_tokenizer` opens.

    Raises:
        ConfigError: it is no tokenizer of TerraMind's
    """
    config = terramind_tokenizer_config(weights)
    own = {name: value.float() for name, value in weights.items()}
    root = Path(folder)
    write_file(root / WEIGHTS, own, metadata=None)
    write_json(root / CONFIG, config, indent=2)
    return len(own)
