"""EfficientNet-Lite files of `efficientnet_lite_pytorch`, in timm's names.

That package numbers its blocks from first to last, timm within stages. A stage begins where a
block gives another width than it is given, which holds for the whole Lite family.
Source: EfficientNet (Tan and Le 2019); Lite: no squeeze and excitation, ReLU6 for swish.
"""

from __future__ import annotations

import re
from typing import Any

from fourm_lite.embedders.pth import Weights
from fourm_lite.errors import ConfigError

MARKS = ("_conv_stem.", "_blocks.0._depthwise_conv.", "_conv_head.", "_fc.")
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
