"""What a checkpoint is, read from its config and its header alone: no weights are loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fourm_lite.io.checkpoint import Checkpoint
from fourm_lite.modalities.spec import Modality


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, and in whose words it is written."""

    kind: str
    format: str
    config: dict[str, Any]
    inputs: tuple[Modality, ...] = ()
    outputs: tuple[Modality, ...] = ()


def describe(checkpoint: Checkpoint) -> Description:
    """What a checkpoint is, by its config and the names of its tensors.

    Raises:
        ConfigError: the config is that of nothing known
    """
    config = checkpoint.config
    written_in = f"fourm_lite {config['format']}" if "format" in config else "ml-4m"
    if config.get("kind") == "fmvit":
        return _vit(checkpoint, written_in)
    if config.get("kind") == "fourm" or "domains_in" in config:
        return _model(checkpoint, written_in)
    return _tokenizer(checkpoint, written_in)


def _model(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.model.load import model_config

    config = model_config(checkpoint)
    # a file without a decoder is the encoder of a model, saved as a backbone
    kind = "fourm" if any(n.startswith("decoder.") for n in checkpoint.tensors) else "fmvit"
    return Description(kind, written_in, config.to_dict(), config.inputs, config.outputs)


def _vit(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.backbone.vit import ViTConfig

    return Description("fmvit", written_in, ViTConfig.from_dict(checkpoint.config).to_dict())


def _tokenizer(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.tokenization.vq.config import parse_config

    config = parse_config(checkpoint.config, checkpoint.tensors).to_dict()
    return Description(str(config["class"]), written_in, config)


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """How many tensors, parameters and bytes it has, and in which types."""
    tensors = checkpoint.tensors.values()
    dtypes = Counter(tensor.dtype for tensor in tensors)
    return {
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.num_bytes for tensor in tensors),
        "dtypes": ", ".join(sorted(dtypes)),
    }
