"""Opening an FMViT from a 4M model, an ml-4m ViT file, or our own format."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fourm_lite.backbone.config import HeadConfig, ViTConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.model.load import fill, model_config
from fourm_lite.nn.device import usable_device, without_storage

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint, Source

log = logging.getLogger(__name__)


def load_vit(
    source: Source,
    *,
    num_classes: int | None = None,
    inputs: Iterable[str] | None = None,
    head: HeadConfig | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FMViT:
    """See `FMViT.from_pretrained`."""
    from fourm_lite.io.checkpoint import read

    device = usable_device(device)
    checkpoint = read(source)
    config = vit_config(checkpoint, inputs)
    wanted = _wanted_head(config.head, num_classes, head)
    keeps_head = wanted == config.head and is_classifier(checkpoint)
    empty = HeadConfig(num_classes=0)
    with without_storage():
        model = FMViT(replace(config, head=config.head if keeps_head else empty))
    fill(model, checkpoint, dtype=dtype, device=device)
    _align(model)
    unused = set(checkpoint.tensors) - set(model.state_dict())
    log.info("%s: %d tensors of other parts were left out", checkpoint.source, len(unused))
    if not keeps_head:
        model.reset_classifier(wanted.num_classes, head=wanted)
    return model.eval()


def _align(model: torch.nn.Module) -> None:
    """Copies tensors that a file holds at an odd address.

    Matrix products sum in another order there, and a saved model would differ in the last bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def is_classifier(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is an FMViT that was saved here, its head included."""
    return checkpoint.config.get("kind") == "fmvit"


def vit_config(checkpoint: Checkpoint, inputs: Iterable[str] | None = None) -> ViTConfig:
    """The config of the ViT inside a checkpoint."""
    if is_classifier(checkpoint):
        config = ViTConfig.from_dict(checkpoint.config)
        _check_sizes(config, checkpoint)
        return config.only(inputs)
    return ViTConfig.of(model_config(checkpoint), inputs)


def _check_sizes(config: ViTConfig, checkpoint: Checkpoint) -> None:
    """Refuses a config whose sizes are not the file's, before anything of them is built."""
    from fourm_lite.io.checkpoint import check_sizes

    sizes = {
        "dim": config.block.dim,
        "mlp_ratio": config.block.mlp_ratio,
        "gated_mlp": config.block.gated_mlp,
        "encoder_depth": config.depth,
        "decoder_depth": 0,
        "num_register_tokens": config.num_register_tokens,
        "inputs": [entry.to_dict() for entry in config.inputs],
    }
    check_sizes(sizes, checkpoint.tensors)


def _wanted_head(saved: HeadConfig, num_classes: int | None, head: HeadConfig | None) -> HeadConfig:
    if head is not None:
        return head
    if num_classes in (None, saved.num_classes):
        return saved
    assert num_classes is not None
    return replace(saved, num_classes=num_classes, class_names=())
