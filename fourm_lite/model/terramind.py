"""TerraMind's `.pt` to a folder of ours: it ships no config, so that follows from its tensors.

The sizes are built in: heads are 64 wide, the flavour shows in the names of the blocks' tensors,
modalities and depths in theirs.
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
from fourm_lite.io.writing import write_file

HEAD = 64
SIDES = {"in": "encoder_embeddings", "out": "decoder_embeddings"}


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
    root = Path(folder)
    write_file(root / WEIGHTS, own, metadata=None)
    write_json(root / CONFIG, config, indent=2)
    return len(own)


def _domains(weights: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for side, table in SIDES.items():
        keys = (key for key in weights if key.startswith(f"{table}."))
        found[side] = list(dict.fromkeys(key.split(".")[1] for key in keys))
    return found


def _depth(weights: Mapping[str, Any], side: str) -> int:
    numbers = {int(m[1]) for key in weights if (m := re.match(rf"{side}\.(\d+)\.", key))}
    return max(numbers, default=-1) + 1
