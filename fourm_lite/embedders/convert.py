"""Published `.pth`, `.pt` and `.bin` files to safetensors: the only place that opens such a file.

It is opened with `weights_only=True`, so nothing in it is executed; the script's options, an
`argparse.Namespace` of plain values, may lie beside the weights. ImageBind's file is recognised by
its keys and becomes a folder for `imagebind:FOLDER`; DINOv2's files become timm folders.
"""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.embedders.image_configs import IMAGENET
from fourm_lite.embedders.imagebind import ImageBindConfig
from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.io.files import write_json
from fourm_lite.io.writing import write_file

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
# Where training scripts put the weights inside a file
NESTS = ("model_ema", "state_dict", "model", "model_state_dict", "module", "teacher", "student")
VISION = "vision."


@dataclass(frozen=True)
class Conversion:
    """How one family's published file becomes a folder of ours.

    `marks` are key beginnings that all files of this family and no others have; `keep` chooses
    keys; `rename` is a table of patterns and their replacements; `change` computes what is more
    than a name; `config` makes config.json from the result.
    """

    marks: tuple[str, ...] = ()
    keep: Callable[[str], bool] = lambda key: True
    rename: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[Weights], Weights] = lambda weights: weights
    config: Callable[[Weights], dict[str, Any]] = lambda weights: {}


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote and what it left out."""

    folder: Path
    family: str
    num_tensors: int
    left_out: tuple[str, ...]


def convert_pth(source: str | Path, folder: str | Path, *, family: str | None = None) -> Converted:
    """Writes `folder`/model.safetensors (and config.json, where the family has one).

    `family` is one of `CONVERSIONS`; left out, it is found by the keys, else all keys stay as they
    are ("plain").

    Raises:
        CheckpointError: the file needs more than tensors to be read, or holds no weights
        ConfigError: unknown family, or the file is not of that family
    """
    weights = read_pth(Path(source))
    name = family or _recognise(weights)
    if name not in CONVERSIONS:
        raise ConfigError(
            f"family is one of {sorted(CONVERSIONS)}, got '{name}'.{suggest(name, CONVERSIONS)}"
        )
    conversion = CONVERSIONS[name]
    if not _has_marks(weights, conversion.marks):
        raise ConfigError(f"'{source}' is no checkpoint of '{name}': it lacks {conversion.marks}")
    kept = conversion.change(
        {
            _renamed(key, conversion.rename): value
            for key, value in weights.items()
            if conversion.keep(key)
        }
    )
    left_out = tuple(key for key in weights if not conversion.keep(key))
    if left_out:
        log.info("left out %d of %d tensors of %s", len(left_out), len(weights), source)
    _write(Path(folder), kept, conversion.config(kept))
    return Converted(Path(folder), name, len(kept), left_out)


def read_pth(path: Path) -> Weights:
    """The tensors of a `.pth` file by name, unwrapped from the script's own dictionary.

    Raises:
        CheckpointError: no such file, code would have to run, or there are no tensors
    """
    if not path.is_file():
        raise CheckpointError(f"expected a .pth, .pt or .bin file, '{path}' does not exist")
    try:
        # A Namespace only keeps what it is given; what lies in it is judged by the same rules
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"'{path}' holds more than tensors and is not opened, since that could run code: "
            f"{str(error).splitlines()[0]} Save its state_dict alone where you trust it"
        ) from error
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        nest = next((n for n in NESTS if isinstance(found.get(n), Mapping)), None)
        if nest is None:
            break
        found = found[nest]
    weights = {
        str(key).removeprefix("module."): value
        for key, value in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not weights:
        raise CheckpointError(f"'{path}' holds no dictionary of tensors")
    return weights


def imagebind_config(weights: Weights) -> dict[str, Any]:
    """config.json of an ImageBind image trunk, from the shapes of its weights.

    The number of heads is in no shape; it is 16, as published.
    """
    stem = weights["modality_preprocessors.vision.rgbt_stem.proj.1.weight"]
    positions = weights["modality_preprocessors.vision.pos_embedding_helper.pos_embed"]
    blocks = {k.split(".")[3] for k in weights if k.startswith("modality_trunks.vision.blocks.")}
    hidden = weights["modality_trunks.vision.blocks.0.mlp.fc1.weight"].shape[0]
    width = stem.shape[0]
    config = ImageBindConfig(
        width=width,
        depth=len(blocks),
        num_heads=16,
        mlp_ratio=hidden // width,
        patch_size=stem.shape[3],
        frames=stem.shape[2],
        image_size=math.isqrt(positions.shape[1] - 1) * stem.shape[3],
        out_dim=weights["modality_heads.vision.2.weight"].shape[0],
    )
    return {"format": 1, "family": "imagebind", **asdict(config)}


# width -> timm's word for the size
DINOV2_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}


def dinov2_config(weights: Weights) -> dict[str, Any]:
    """config.json of a timm folder for DINOv2, from the shapes of its weights.

    Raises:
        ConfigError: no published DINOv2 has this width
    """
    kernel, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    width, patch = kernel.shape[0], kernel.shape[3]
    if width not in DINOV2_SIZES:
        raise ConfigError(
            f"DINOv2 is published with the widths {sorted(DINOV2_SIZES)}, the file has {width}"
        )
    registers = "reg_token" in weights
    edge = math.isqrt(positions.shape[1]) * patch
    middle = f"reg{weights['reg_token'].shape[1]}_" if registers else ""
    return {
        "architecture": f"vit_{DINOV2_SIZES[width]}_patch{patch}_{middle}dinov2",
        "num_classes": 0,
        "model_args": {"img_size": edge, "depth": 1 + max(map(_block, weights))},
        "pretrained_cfg": {
            "architecture": f"vit_{DINOV2_SIZES[width]}_patch{patch}_{middle}dinov2",
            "input_size": [3, edge, edge],
            "crop_pct": 1.0,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": list(IMAGENET["mean"]),
            "std": list(IMAGENET["std"]),
        },
    }


def _block(key: str) -> int:
    return int(key.split(".")[1]) if key.startswith("blocks.") else -1


def _split_class_position(weights: Weights) -> Weights:
    # With registers, timm's positions are of patches alone: the class token takes its own.
    if "reg_token" not in weights:
        return weights
    positions = weights["pos_embed"]
    cls_token = weights["cls_token"] + positions[:, :1]
    return {**weights, "cls_token": cls_token, "pos_embed": positions[:, 1:]}


def _is_imagebind_vision(key: str) -> bool:
    part, _, rest = key.partition(".")
    known = ("modality_preprocessors", "modality_trunks", "modality_heads")
    return part in known and rest.startswith(VISION)


# The branches for audio, text, depth, thermal and IMU stay behind; names need no change.
CONVERSIONS: dict[str, Conversion] = {
    "imagebind": Conversion(
        marks=("modality_preprocessors.vision.", "modality_trunks.vision."),
        keep=_is_imagebind_vision,
        config=imagebind_config,
    ),
    # facebookresearch/dinov2's files to timm's names; SwiGLU of the giant model is one matrix
    "dinov2": Conversion(
        marks=("mask_token", "cls_token", "patch_embed.proj.", "blocks.0.ls1.gamma"),
        keep=lambda key: key != "mask_token",
        rename={
            r"^register_tokens$": "reg_token",
            r"\.mlp\.w12\.": ".mlp.fc1.",
            r"\.mlp\.w3\.": ".mlp.fc2.",
        },
        change=_split_class_position,
        config=dinov2_config,
    ),
    "plain": Conversion(),
}


def _recognise(weights: Weights) -> str:
    found = (n for n, c in CONVERSIONS.items() if c.marks and _has_marks(weights, c.marks))
    return next(found, "plain")


def _has_marks(weights: Weights, marks: tuple[str, ...]) -> bool:
    return all(any(key.startswith(mark) for key in weights) for mark in marks)


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        key = re.sub(pattern, replacement, key)
    return key


def _write(folder: Path, weights: Weights, config: dict[str, Any]) -> None:
    write_file(folder / "model.safetensors", weights, metadata=None)
    if config:
        write_json(folder / "config.json", config, indent=2)
