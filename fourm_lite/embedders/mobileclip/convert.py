"""Writes MobileCLIP's file as a folder of ours: folded safetensors, and what no weight says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourm_lite.embedders.mobileclip.load import build, folded, open_clip_name, read_clip, shape_of
from fourm_lite.families.mobileclip import CONTEXT, MOBILECLIP
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file


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
