"""Opening an FMViT from a 4M model, an ml-4m ViT file, or our own format."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fourm_lite.backbone.vit import FMViT, ViTConfig
from fourm_lite.model.load import fill, model_config
from fourm_lite.nn.empty import without_storage

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def load_vit(
    source: str | Path,
    *,
    num_classes: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FMViT:
    """See `FMViT.from_pretrained`."""
    from fourm_lite.io.checkpoint import read

    checkpoint = read(source)
    config = _vit_config(checkpoint)
    keeps_head = "head.weight" in checkpoint.tensors and num_classes in (None, config.num_classes)
    classes = config.num_classes if num_classes is None else num_classes
    with without_storage():
        model = FMViT(replace(config, num_classes=classes if keeps_head else 0, class_names=()))
    model.config = replace(model.config, class_names=config.class_names if keeps_head else ())
    fill(model, checkpoint, dtype=dtype or torch.float32, device=device)
    unused = set(checkpoint.tensors) - set(model.state_dict())
    log.info("%s: %d tensors of other parts were left out", checkpoint.source, len(unused))
    if not keeps_head:
        model.reset_classifier(classes)
    return model.eval()


def _vit_config(checkpoint: Checkpoint) -> ViTConfig:
    if checkpoint.config.get("kind") == "fmvit":
        return ViTConfig.from_dict(checkpoint.config)
    return ViTConfig.of(model_config(checkpoint))
