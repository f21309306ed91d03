"""Embedders from timm: DINOv2/v3, MobileCLIP's image towers and every other backbone.

The class token is DINO's vector (timm pools DINOv3 by its mean unless told). A CLIP tower keeps its
projection, a classifier loses its head. A folder is what timm's `save_for_hf` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.folder_configs import PICTURE_KEYS, timm_arguments
from fourm_lite.embedders.image_configs import Preprocess, from_timm, pixels_of, preset
from fourm_lite.errors import CheckpointError, ConfigError, foreign_errors, suggest
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.names import is_name

if TYPE_CHECKING:
    from PIL.Image import Image

# In the names of timm's weights, architecture.tag, that are image towers of text and image
TOWERS = ("clip", "_mci", "_pe_core_")

Output = Literal["auto", "class_token", "pooled", "projected"]


def load_timm(
    source: str,
    *,
    device: str = "cpu",
    output: Output = "auto",
    preprocess: Preprocess | str | None = None,
    image_size: int | None = None,
) -> NetworkEmbedder:
    """An embedder from a timm name (fetched from the Hub), "hf-hub:ID" or a local folder.

    `output`: "class_token", "pooled" (timm's own pooling), "projected" (the head of a CLIP tower);
    "auto" takes what the network was trained for. `image_size` changes the input size, for example
    224 for DINOv2 as 4M uses it.

    Raises:
        ConfigError: unknown name or output
        CheckpointError: a folder without config.json and model.safetensors
    """
    folder = Path(source)
    size = {} if image_size is None else {"img_size": image_size}
    model = _from_folder(folder, size) if folder.is_dir() else _from_name(source, size)
    config = dict(model.pretrained_cfg)
    chosen = _output(model, config) if output == "auto" else output
    if chosen not in ("class_token", "pooled", "projected"):
        raise ConfigError(f"output is auto, class_token, pooled or projected, got '{output}'")
    if chosen != "projected":
        model.reset_classifier(0)
    # Convolutions are twice as fast on a CPU where the channels lie together; values stay
    model = model.to(device, memory_format=torch.channels_last).eval()
    if isinstance(preprocess, str):
        preprocess = preset(preprocess, size=image_size)
    prepare = preprocess or _transform(source, config, image_size)
    return NetworkEmbedder(
        f"timm:{source}",
        Towers(_image_tower(model, prepare, chosen), None, _patch_tower(model, prepare)),
        identity=lambda: fingerprint_module(model),
        preprocess=prepare,
        facts={"output": chosen, "architecture": config.get("architecture")},
        label=f"timm:{config.get('architecture')}",
    )


def _from_name(name: str, size: Mapping[str, Any]) -> Any:
    import timm

    stem = name.split(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(stem):
        raise ConfigError(
            f"'{name}' is no folder and timm knows no model of that name."
            f"{suggest(stem, timm.list_models())}"
        )
    told = (
        f"the weights of '{name}' cannot be fetched or read: {{error}}. Without a network, give "
        "the folder that timm's save_for_hf wrote"
    )
    with foreign_errors(CheckpointError, told):  # a truncated download, other shapes
        return timm.create_model(name, pretrained=True, **size)


def _from_folder(folder: Path, size: Mapping[str, Any]) -> Any:
    import timm

    config_file, weights = folder / "config.json", folder / "model.safetensors"
    if not (config_file.is_file() and weights.is_file()):
        raise CheckpointError(
            f"a timm folder holds config.json and model.safetensors, '{folder}' holds "
            f"{sorted(p.name for p in folder.iterdir())}; a .bin or .pth file is turned into "
            "safetensors by `fourm-lite convert FILE -o OUT`"
        )
    config = read_json_object(config_file)
    missing = [key for key in ("architecture", "pretrained_cfg") if key not in config]
    if missing:
        raise CheckpointError(f"'{config_file}' is no timm configuration: it lacks {missing}")
    name, pretrained = config["architecture"], config["pretrained_cfg"]
    if not (isinstance(name, str) and is_name(name) and timm.is_model(name)):
        raise CheckpointError(
            f"'architecture' in {config_file} should be the name of a timm model, got {name!r:.80}."
            f"{suggest(str(name)[:80], timm.list_models())}"
        )
    if not isinstance(pretrained, Mapping):
        raise CheckpointError(f"'pretrained_cfg' in {config_file} should be a table")
    told = f"'{folder}' is no folder that timm can open ({{error}}); fetch it again"
    with foreign_errors(CheckpointError, told):  # numbers that do not fit each other
        tensors = load_tensors(weights)
        arguments = timm_arguments(config.get("model_args") or {}, config_file, len(tensors))
        classes = {"num_classes": config.get("num_classes", 0)}
        timm_arguments(classes, config_file, len(tensors))
        details = classes | {k: pretrained[k] for k in PICTURE_KEYS if k in pretrained}
        model = timm.create_model(name, pretrained_cfg=details, **{**classes, **arguments, **size})
        _load(model, tensors, weights)
    return model


def _transform(source: str, config: Mapping[str, Any], size: int | None) -> Preprocess:
    try:
        return from_timm(config, size=size)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"'pretrained_cfg' of '{source}' does not say how pictures are prepared: {error}"
        ) from error


def _load(model: Any, weights: dict[str, Tensor], path: Path) -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    wanted = getattr(model, "pos_embed", None)
    stored = weights.get("pos_embed")
    if wanted is not None and stored is not None and wanted.shape != stored.shape:
        weights["pos_embed"] = resample_abs_pos_embed(
            stored,
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=0 if getattr(model, "no_embed_class", False) else 1,
        )
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"'{path}' does not fit its config.json: {error}") from error


def _output(model: Any, config: Mapping[str, Any]) -> Output:
    """What a network was trained for: a CLIP tower's head is its projection."""
    architecture = str(config.get("architecture"))
    name = f"{architecture}.{config.get('tag') or ''} {config.get('hf_hub_id') or ''}"
    tower = any(word in name for word in TOWERS)
    if tower and model.num_classes > 0 and "ft_in" not in name:  # "ft_in1k": fine-tuned to classes
        return "projected"
    return "class_token" if "dino" in architecture else "pooled"


def _image_tower(
    model: Any, prepare: Preprocess, output: Output
) -> Callable[[list[Image]], Tensor]:
    def embed(images: list[Image]) -> Tensor:
        pixels = pixels_of(prepare, images).to(_device(model))
        if output == "projected":
            return model(pixels)
        states = model.forward_features(pixels)
        if output == "class_token":
            return _class_token(model, states)
        return model.forward_head(states, pre_logits=True)

    return embed


def _class_token(model: Any, states: Tensor) -> Tensor:
    if states.ndim != 3 or not getattr(model, "num_prefix_tokens", 0):
        raise ConfigError("this network has no class token; choose output='pooled'")
    return states[:, 0]


def _patch_tower(model: Any, prepare: Preprocess) -> Callable[[list[Image]], Tensor]:
    def embed(images: list[Image]) -> Tensor:
        states = model.forward_features(pixels_of(prepare, images).to(_device(model)))
        if states.ndim == 3:
            return states[:, getattr(model, "num_prefix_tokens", 0) :]
        layout = str(getattr(model, "output_fmt", "NCHW"))
        pattern = "b h w e -> b (h w) e" if layout.endswith("NHWC") else "b e h w -> b (h w) e"
        return rearrange(states, pattern)

    return embed


def _device(model: Any) -> Any:
    return next(model.parameters()).device
