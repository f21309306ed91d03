"""Published `.pth`, `.pt` and `.bin` files to safetensors: the only place that opens such a file.

It is opened with `weights_only=True`, so nothing in it is executed. ImageBind's file is recognised
by its keys and becomes a folder that `load_embedder("imagebind:FOLDER")` reads.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.embedders.imagebind import ImageBindConfig
from fourm_lite.errors import CheckpointError, ConfigError, suggest

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
# Where training scripts put the weights inside a file
NESTS = ("state_dict", "model", "model_state_dict", "module", "teacher", "student")
VISION = "vision."


@dataclass(frozen=True)
class Conversion:
    """How one family's published file becomes a folder of ours.

    `marks` are key beginnings that only this family has; `keep` chooses keys; `rename` replaces
    beginnings, first fit; `config` makes config.json from the kept weights.
    """

    marks: tuple[str, ...]
    keep: Callable[[str], bool]
    rename: Mapping[str, str]
    config: Callable[[Weights], dict[str, Any]]


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
    kept = {
        _renamed(key, conversion.rename): value
        for key, value in weights.items()
        if conversion.keep(key)
    }
    if not kept or not all(any(k.startswith(m) for k in weights) for m in conversion.marks):
        raise ConfigError(f"'{source}' is no checkpoint of '{name}': it lacks {conversion.marks}")
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


def _is_imagebind_vision(key: str) -> bool:
    part, _, rest = key.partition(".")
    known = ("modality_preprocessors", "modality_trunks", "modality_heads")
    return part in known and rest.startswith(VISION)


# The branches for audio, text, depth, thermal and IMU stay behind; names need no change.
CONVERSIONS: dict[str, Conversion] = {
    "imagebind": Conversion(
        marks=("modality_preprocessors.vision.", "modality_trunks.vision."),
        keep=_is_imagebind_vision,
        rename={},
        config=imagebind_config,
    ),
    "plain": Conversion(marks=(), keep=lambda key: True, rename={}, config=lambda weights: {}),
}


def _recognise(weights: Weights) -> str:
    for name, conversion in CONVERSIONS.items():
        marks = conversion.marks
        if marks and all(any(k.startswith(m) for k in weights) for m in marks):
            return name
    return "plain"


def _renamed(key: str, table: Mapping[str, str]) -> str:
    start = next((old for old in table if key.startswith(old)), None)
    return key if start is None else table[start] + key[len(start) :]


def _write(folder: Path, weights: Weights, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Tied tensors share memory in a .pth; safetensors wants each on its own
    own = {key: value.clone().contiguous() for key, value in weights.items()}
    save_file(own, folder / "model.safetensors")
    if config:
        text = json.dumps(config, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
