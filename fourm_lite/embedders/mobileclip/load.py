"""`mobileclip:FILE_OR_FOLDER`: Apple's files with their own text tower and preprocessing.

S0, S1, S2, B and B (LT) are read by the networks here, folded or not. MobileCLIP2 and the larger
files are in open_clip's layout and are read by it, with the statistics that they were trained with.
open_clip's own `MobileCLIP-B` is another network (padding and eps of timm's ViT).

Words are CLIP's, whose vocabulary is open_clip's file or that of a transformers CLIP folder; it is
not in this library. A text is always 77 ids, cut with the end token last, padded with 0: padding is
read like words by towers that are not causal, so the length never changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.image_transforms import ImagePreprocess
from fourm_lite.embedders.mobileclip.layers import fold
from fourm_lite.embedders.mobileclip.towers import IMAGE, TEXT, MobileClip, Shape
from fourm_lite.embedders.pth import SUFFIXES, Weights, read_pth
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, check_choice
from fourm_lite.families.mobileclip import (
    CONTEXT,
    MOBILECLIP,
    NO_CHANGE,
    OPEN_CLIP_FILES,
    OpenClipTower,
)
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.io.writing import write_file
from fourm_lite.nn.device import without_storage

Tokens = Callable[[list[str]], Tensor]
"""n texts -> int64[n, length]."""


def clip_tokens(tokenizer: Any, length: int) -> Tokens:
    """What turns texts into ids: a transformers CLIP folder, a callable, or open_clip's vocabulary.

    Raises:
        FourMError: nothing is given and open_clip is not installed
        CheckpointError: the folder holds no tokenizer
    """
    if callable(tokenizer):
        return lambda texts: torch.as_tensor(tokenizer(texts))
    if tokenizer is not None:
        return _from_transformers(str(Path(tokenizer).expanduser()), length)
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise FourMError(
            "MobileCLIP's files hold no vocabulary: pip install open_clip_torch, which "
            "carries CLIP's, or give the folder of a transformers CLIP tokenizer: tokenizer=FOLDER"
        ) from error
    read = SimpleTokenizer(context_length=length)
    return lambda texts: torch.as_tensor(read(texts))


def _from_transformers(folder: str, length: int) -> Tokens:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{folder}' holds no CLIP tokenizer: {error}") from error

    def read(texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, ids in zip(rows, tokenizer(texts)["input_ids"], strict=True):
            cut = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            row[: len(cut)] = torch.tensor(cut)
        return rows

    return read


DOOR = "mobileclip"


@dataclass(frozen=True)
class SavedClip:
    """A file as it was found: its weights, its stem, and the config beside it, if any."""

    path: Path
    weights: Weights
    config: dict[str, Any]


def load_mobileclip(
    source: str,
    *,
    device: str = "cpu",
    preprocess: ImagePreprocess | None = None,
    tokenizer: Any = None,
    architecture: str | None = None,
) -> NetworkEmbedder:
    """An embedder from Apple's file of MobileCLIP or MobileCLIP2, or what `convert` made of it.

    `tokenizer` is the folder of a transformers CLIP tokenizer in place of open_clip's vocabulary;
    `architecture` open_clip's name, where a file in its layout bears another than the published.

    Raises:
        CheckpointError: nothing is there, or a weight is missing or does not fit
        ConfigError: the file is of no MobileCLIP
        FourMError: open_clip is needed and not installed
    """
    saved = read_clip(source)
    if MOBILECLIP.owns(saved.weights):
        model, size = build(saved), shape_of(saved).image_size
        prepare = preprocess or _preprocess(size, "bilinear", NO_CHANGE)
        scale: float = model.scale
        network: nn.Module = model
    else:
        tower = _open_clip_tower(saved, architecture)
        network = _open_clip_network(saved, tower)
        prepare = preprocess or _preprocess(tower.size, tower.interpolation, tower.statistics)
        scale = min(math.exp(float(saved.weights["logit_scale"])), 100.0)
    network = network.to(device).eval()
    length = saved.config.get("text_cfg", {}).get("context_length", CONTEXT)
    words = _Late(lambda: clip_tokens(tokenizer, length))
    return NetworkEmbedder(
        f"mobileclip:{source}",
        Towers(
            image=lambda images: network.encode_image(  # type: ignore[operator]
                prepare.batch(images)["pixel_values"].to(device)
            ),
            text=lambda texts: network.encode_text(words(texts).to(device)),  # type: ignore[operator]
        ),
        identity=lambda: fingerprint_module(network),
        preprocess=prepare,
        logit_scale=LogitScale(scale),
        facts={"output": "projected"},
        label="mobileclip",
    )


class _Late:
    """A tokenizer that is opened when the first text comes: pictures need none."""

    def __init__(self, make: Callable[[], Callable[[list[str]], Tensor]]) -> None:
        self._make = make
        self._made: Callable[[list[str]], Tensor] | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made(texts)


def read_clip(source: str | Path) -> SavedClip:
    """The weights of a file, or of the one file in a folder, with the config beside them.

    Raises:
        CheckpointError: nothing is there, or there are several files
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.suffix in (*SUFFIXES, ".safetensors")]
        if len(found) != 1:
            raise CheckpointError(
                f"expected one file of weights in '{path}', it holds "
                f"{sorted(p.name for p in path.iterdir())}"
            )
        path = found[0]
    if path.suffix == ".safetensors" and path.is_file():
        weights = load_tensors(path)
    else:
        weights = read_pth(path).weights
    return SavedClip(path, {k: v.float() for k, v in weights.items()}, _config(path.parent))


def build(saved: SavedClip) -> MobileClip:
    """Apple's network in folded form with its weights.

    Raises:
        CheckpointError: a weight is missing, has another shape or is unknown
    """
    weights = folded(saved.weights)
    try:
        with without_storage():
            model = MobileClip(weights, MOBILECLIP, shape_of(saved))
        model.load_state_dict(weights, strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"'{saved.path}' does not fit MobileCLIP: {error}") from error
    return model


def folded(weights: Weights) -> Weights:
    """Apple's weights in folded form, without counters."""
    return _with_counters(fold(MOBILECLIP.renamed(weights)))


def _with_counters(weights: Weights) -> Weights:
    """BatchNorms that stay count batches; nothing reads it."""
    import torch

    means = [k for k in weights if k.endswith("running_mean")]
    count = torch.zeros((), dtype=torch.long)
    return weights | {k.replace("running_mean", "num_batches_tracked"): count for k in means}


def shape_of(saved: SavedClip) -> Shape:
    """What no weight says: from the config beside the file, else as published."""
    image = saved.config.get("image_cfg", {})
    text = saved.config.get("text_cfg", {})
    weights = MOBILECLIP.renamed(saved.weights)
    width = weights[f"{TEXT}projection_layer"].shape[0]
    is_vit = f"{IMAGE}cls_token" in weights
    size, head = MOBILECLIP.image_size, MOBILECLIP.head
    if is_vit:
        patches = weights[f"{IMAGE}pos_embed.pos_embed.pos_embed"].shape[2]
        size = math.isqrt(patches) * 16
        vit_width = weights[f"{IMAGE}cls_token"].shape[-1]
        head = vit_width // image.get("n_attn_heads", max(1, vit_width // MOBILECLIP.head))
    heads = text.get("n_heads_per_layer", max(1, width // MOBILECLIP.head))
    return Shape(
        image_size=image.get("image_size", size),
        image_head=head,
        text_head=width // heads,
        causal=text.get("causal_masking", is_vit and MOBILECLIP.causal_with_vit),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' cannot be read as JSON: {error}") from error
    return values if isinstance(values, dict) and "text_cfg" in values else {}


def _preprocess(size: int, interpolation: Any, statistics: Any) -> ImagePreprocess:
    mean, std = statistics
    pair = (size, size)
    return ImagePreprocess(
        resize="shortest", size=pair, crop=pair, interpolation=interpolation, mean=mean, std=std
    )


def _open_clip_tower(saved: SavedClip, architecture: str | None) -> OpenClipTower:
    if not any(key.startswith("visual.") for key in saved.weights):
        raise ConfigError(
            f"'{saved.path}' holds no MobileCLIP: expected image_encoder.model.* and "
            "text_encoder.* (Apple's), or visual.* (open_clip's); its first weights are "
            f"{sorted(saved.weights)[:3]}"
        )
    by_name = {tower.architecture: tower for tower in OPEN_CLIP_FILES.values()}
    if architecture is not None:
        check_choice("architecture", architecture, of=sorted(by_name))
        return by_name[architecture]
    stem = saved.path.stem.lower().replace("-", "")
    written = saved.config.get("architecture")
    found = by_name.get(written) if written else OPEN_CLIP_FILES.get(stem)
    if found is None:
        raise ConfigError(
            f"'{saved.path.name}' is in open_clip's layout and bears none of the published names "
            f"{sorted(OPEN_CLIP_FILES)}; say which network it is with architecture=NAME, one of "
            f"{sorted(by_name)}"
        )
    return found


def open_clip_name(saved: SavedClip) -> str:
    """open_clip's name of the network of a file in its layout.

    Raises:
        ConfigError: it is of no MobileCLIP, or nothing says which
    """
    return _open_clip_tower(saved, None).architecture


def _open_clip_network(saved: SavedClip, tower: OpenClipTower) -> nn.Module:
    try:
        import open_clip
    except ImportError as error:
        raise FourMError(
            f"'{saved.path.name}' is in open_clip's layout: pip install open_clip_torch"
        ) from error
    model: nn.Module = open_clip.create_model(tower.architecture, pretrained=None)
    try:
        model.load_state_dict(saved.weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"'{saved.path}' is no {tower.architecture}: {error}") from error
    return model


def convert_mobileclip(source: str | Path, folder: str | Path) -> int:
    """Writes what `mobileclip:FOLDER` opens and gives the number of its tensors.

    Raises:
        CheckpointError: a weight is missing or does not fit
        ConfigError: the file is of no MobileCLIP
    """
    saved = read_clip(source)
    if MOBILECLIP.owns(saved.weights):
        build(saved)
        weights = folded(saved.weights)
        shape = shape_of(saved)
        width = weights["text_encoder.projection_layer"].shape[0]
        text = {"context_length": CONTEXT, **saved.config.get("text_cfg", {})}
        text |= {"n_heads_per_layer": width // shape.text_head, "causal_masking": shape.causal}
        image = {**saved.config.get("image_cfg", {}), "image_size": shape.image_size}
        if "image_encoder.model.cls_token" in weights:
            vit_width = weights["image_encoder.model.cls_token"].shape[-1]
            image["n_attn_heads"] = vit_width // shape.image_head
        config: dict[str, Any] = {"image_cfg": image, "text_cfg": text}
    else:
        weights = saved.weights
        config = {"architecture": open_clip_name(saved), "image_cfg": {}, "text_cfg": {}}
    root = Path(folder)
    write_file(root / WEIGHTS, weights, metadata=None)
    values = {"format": 1, "door": "mobileclip", **config}
    write_json(root / CONFIG, values, indent=2)
    return len(weights)
