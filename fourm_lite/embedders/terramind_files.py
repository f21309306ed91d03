"""TerraMind's models and tokenizers, `.pt`, to folders of ours: they ship no config.

It follows from the tensors. Of a model heads are 64 wide, the flavour shows in the names of the
blocks' tensors, modalities and depths in theirs. Of a tokenizer the levels of the finite quantizers
and the noise schedule of the diffusion decoders are built in; a value is decoded within one
deviation of the mean, since every decoded value is clipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.families.masked import TERRAMIND, fork_of
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.ml4m import SIDES
from fourm_lite.io.writing import write_file

HEAD = 64


def is_terramind(weights: Mapping[str, Any]) -> bool:
    """Whether a file's tensors are those of a TerraMind model."""
    names = _domains(weights)
    return bool(names["in"]) and fork_of([*names["in"], *names["out"]]) is TERRAMIND


def terramind_config(weights: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """The config that the tensors imply, in ml-4m's words.

    Raises:
        CheckpointError: a tensor that every model has is missing
        ConfigError: the width is no multiple of a head, and nothing says how many there are
    """
    first = "encoder.0.norm1.weight"
    if first not in weights:
        raise CheckpointError(f"a TerraMind model has the tensor '{first}', the file has none")
    width, names = weights[first].shape[0], _domains(weights)
    gated = "encoder.0.mlp.fc3.weight" in weights
    if heads is None and width % HEAD:
        raise ConfigError(
            f"heads are {HEAD} wide in published models, which does not divide the width {width}; "
            "say how many there are with heads=NUMBER"
        )
    bias = {
        f"{part}_bias": f"encoder.0.{place}.bias" in weights
        for part, place in {"qkv": "attn.qkv", "proj": "attn.proj", "mlp": "mlp.fc1"}.items()
    }
    return {
        "domains_in": names["in"],
        "domains_out": names["out"],
        "image_size": 224,
        "patch_size": 16,
        "dim": width,
        "num_heads": heads or width // HEAD,
        "encoder_depth": _depth(weights, "encoder"),
        "decoder_depth": _depth(weights, "decoder"),
        "mlp_ratio": 4.0,
        "act_layer": "SiLU" if gated else "GELU",
        "gated_mlp": gated,
        "norm_bias": False,
        "qk_norm": "encoder.0.attn.q_norm.weight" in weights,
        "share_modality_embeddings": True,
        **bias,
    }


def convert_terramind(
    weights: Mapping[str, Tensor], folder: str | Path, *, heads: int | None = None
) -> int:
    """Writes config.json and model.safetensors, which `load_model` and `FMViT` open.

    A target's token table is the table of its logits and is written once.

    Raises:
        CheckpointError: a tensor is missing or does not fit
    """
    config = terramind_config(weights, heads)
    own = {
        name: value.float()
        for name, value in weights.items()
        if not (name.startswith("decoder_embeddings.") and name.endswith(".token_emb.weight"))
    }
    return _write(folder, config, own)


def _domains(weights: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for side, table in SIDES.items():
        keys = (key for key in weights if key.startswith(f"{table}."))
        found[side] = list(dict.fromkeys(key.split(".")[1] for key in keys))
    return found


def _depth(weights: Mapping[str, Any], side: str) -> int:
    numbers = {int(m[1]) for key in weights if (m := re.match(rf"{side}\.(\d+)\.", key))}
    return max(numbers, default=-1) + 1


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
    return _write(folder, config, {name: value.float() for name, value in weights.items()})


def _write(folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> int:
    root = Path(folder)
    write_file(root / WEIGHTS, weights, metadata=None)
    write_json(root / CONFIG, config, indent=2)
    return len(weights)
