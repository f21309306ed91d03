"""A tiny AION-1 in the layout of its hub folders, with two of its codecs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from fourm_lite.modalities.forks import AION_MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM

STYLE = {
    "act_layer": "SiLU", "gated_mlp": True, "qkv_bias": False, "proj_bias": False,
    "mlp_bias": False, "norm_bias": False,
}  # fmt: skip
NAMES = ("tok_flux_g", "tok_z", "catalog")


def save_aion(folder: Path) -> Path:
    """config.json in ml-4m's words without image_size and patch_size, weights, codecs/."""
    entries = tuple(AION_MODALITIES[name] for name in NAMES)
    sizes = {"dim": 32, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FourM(FourMConfig(inputs=entries, outputs=entries, **sizes, **STYLE)).init_weights()
    folder.mkdir(parents=True)
    config = {"domains_in": list(NAMES), "domains_out": list(NAMES), **sizes, **STYLE}
    (folder / "config.json").write_text(json.dumps(config))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    for name, values in {"FLUX_G": {"min_log_value": -3}, "Z": {}}.items():
        codec = folder / "codecs" / name
        codec.mkdir(parents=True)
        (codec / "config.json").write_text(json.dumps({"codebook_size": 1024, **values}))
        table = {"_quantizer._index_to_val": torch.linspace(-3, 9, 1024)}
        save_file(table, codec / "model.safetensors")
    return folder
