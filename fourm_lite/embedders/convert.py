"""Published `.pth`, `.pt` and `.bin` files to safetensors; `pth.py` opens them.

ImageBind's file is recognised by its keys and becomes a folder for `imagebind:FOLDER`; DINOv2's
files become timm folders, also where a training wrote its backbone among other things, and those
of EfficientNet-Lite.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.embedders.image_configs import IMAGENET
from fourm_lite.embedders.imagebind import ImageBindConfig
from fourm_lite.embedders.pth import Weights, read_pth
from fourm_lite.errors import CheckpointError, ConfigError, check_choice
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file

log = logging.getLogger(__name__)

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
    """What a conversion wrote, what it left out, and notes on both."""

    folder: Path
    family: str
    num_tensors: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert_pth(
    source: str | Path,
    folder: str | Path,
    *,
    family: str | None = None,
    part: str | None = None,
    half: bool = False,
) -> Converted:
    """Writes `folder`/model.safetensors (and config.json, where the family has one).

    `family` is one of `CONVERSIONS`; left out, it is found by the keys, else all keys stay as they
    are ("plain"). `part` names the place in the file to read, where it holds several networks.
    `half` stores floats as float16.

    Raises:
        CheckpointError: the file needs more than tensors to be read, is damaged, or holds no
            weights or several networks
        ConfigError: unknown family, or the file is not of that family
    """
    found = read_pth(Path(source), part=part)
    if family is not None:
        check_choice("family", family, of=sorted(CONVERSIONS))
    name, prefix = _recognise(found.weights, family)
    conversion = CONVERSIONS[name]
    if family is not None and not _has_marks(found.weights, conversion.marks, prefix):
        raise ConfigError(f"'{source}' is no checkpoint of '{name}': it lacks {conversion.marks}")
    own = {k.removeprefix(prefix): v for k, v in found.weights.items() if k.startswith(prefix)}
    kept = conversion.change(
        {_renamed(k, conversion.rename): v for k, v in own.items() if conversion.keep(k)}
    )
    beside = (key for key in found.weights if not key.startswith(prefix))
    left_out = (*found.left_out, *(k for k in own if not conversion.keep(k)), *beside)
    if left_out:
        log.info("left out %d tensors of %s", len(left_out), source)
    notes = (*found.notes, *([f"'{prefix}' was taken off the names"] if prefix else []))
    config = _config(conversion, kept, source)
    stored = {k: v.half() if half and v.is_floating_point() else v for k, v in kept.items()}
    write_file(Path(folder) / WEIGHTS, stored, metadata=None)
    if config:
        write_json(Path(folder) / CONFIG, config, indent=2)
    return Converted(Path(folder), name, len(kept), left_out, notes)


def _config(conversion: Conversion, weights: Weights, source: str | Path) -> dict[str, Any]:
    try:
        return conversion.config(weights)
    except (LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"'{source}' lacks tensors of its family, or they have other shapes: {error}"
        ) from error


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
# EfficientNet (Tan and Le 2019); Lite has no squeeze and excitation, and ReLU6 for swish.
# `efficientnet_lite_pytorch` numbers its blocks from first to last, timm within stages: a stage
# begins where a block gives another width than it is given, which holds for the whole family.
# (width before the head, blocks) -> (number of the network, pixels a side that it was trained on)
SIZES = {(320, 16): (0, 224), (320, 21): (1, 240), (352, 21): (2, 260), (384, 24): (3, 280),
         (448, 30): (4, 300)}  # fmt: skip

_BLOCK = re.compile(r"^_blocks\.(\d+)\.(_\w+)\.(\w+)$")
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_AROUND = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def timm_names(weights: Weights) -> Weights:
    """The same tensors by the names of timm's `tf_efficientnet_lite*`.

    Raises:
        ConfigError: a tensor is none of the family's
    """
    stages = _stages(weights)
    return {_timm_name(key, weights, stages): value for key, value in weights.items()}


def timm_config(weights: Weights) -> dict[str, Any]:
    """config.json of a timm folder, from the shapes of weights that have timm's names.

    Pictures are read whole (no crop of the middle, which timm's own configuration has): what
    stands at the edges counts in a search. Pixels are (x - 127) / 128, as it was trained on.

    Raises:
        ConfigError: no published network has these shapes
    """
    width = weights["conv_head.weight"].shape[1]
    blocks = len({tuple(key.split(".")[1:3]) for key in weights if key.startswith("blocks.")})
    if (width, blocks) not in SIZES:
        raise ConfigError(
            f"EfficientNet-Lite is published with these widths and blocks: {sorted(SIZES)}, the "
            f"file has {(width, blocks)}"
        )
    number, edge = SIZES[width, blocks]
    architecture = f"tf_efficientnet_lite{number}"
    return {
        "architecture": architecture,
        "num_classes": weights["classifier.weight"].shape[0],
        "pretrained_cfg": {
            "architecture": architecture,
            "input_size": [3, edge, edge],
            "crop_pct": 1.0,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
            "license": "apache-2.0",
        },
    }


def _stages(weights: Weights) -> list[tuple[int, int]]:
    """Stage and number within it of each block."""
    found: list[tuple[int, int]] = []
    number = 0
    while (given := weights.get(f"_blocks.{number}._project_conv.weight")) is not None:
        first = weights.get(f"_blocks.{number}._expand_conv.weight")
        same = first is not None and first.shape[1] == given.shape[0]
        stage, within = found[-1] if found else (-1, 0)
        found.append((stage, within + 1) if same else (stage + 1, 0))
        number += 1
    return found


def _timm_name(key: str, weights: Weights, stages: list[tuple[int, int]]) -> str:
    block = _BLOCK.match(key)
    if block is None:
        part, _, tensor = key.partition(".")
        table, head = _AROUND, ""
    else:
        number, part, tensor = int(block[1]), block[2], block[3]
        table = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in weights else _SEPARABLE
        stage, within = stages[number] if number < len(stages) else (0, 0)
        head = f"blocks.{stage}.{within}."
    if part not in table:
        raise ConfigError(f"{key!r} is no tensor of EfficientNet-Lite; is it another network?")
    return f"{head}{table[part]}.{tensor}"


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
    "efficientnet_lite": Conversion(
        marks=("_conv_stem.", "_blocks.0._depthwise_conv.", "_conv_head.", "_fc."),
        change=timm_names,
        config=timm_config,
    ),
    "plain": Conversion(),
}


def _recognise(weights: Weights, family: str | None) -> tuple[str, str]:
    """The family of some weights, and what stands before its names where more lies around it."""
    prefixes = ["", *dict.fromkeys(f"{key.partition('.')[0]}." for key in weights)]
    for name, conversion in CONVERSIONS.items():
        for prefix in prefixes if conversion.marks and family in (None, name) else ():
            if _has_marks(weights, conversion.marks, prefix):
                return name, prefix
    return family or "plain", ""


def _has_marks(weights: Weights, marks: tuple[str, ...], prefix: str = "") -> bool:
    return all(any(key.startswith(prefix + mark) for key in weights) for mark in marks)


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        key = re.sub(pattern, replacement, key)
    return key
