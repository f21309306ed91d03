"""Opening a FourM model: from our own format, or from a published 4M checkpoint.

Nothing is initialised that is then overwritten: the model is built without storage and takes the
mapped tensors of the file. Only the modalities that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fourm_lite.errors import CheckpointError
from fourm_lite.families.masked import FOURM, MaskedFamily, fork_of
from fourm_lite.io.tensor_info import FLOATING
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.published import family_of
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.device import usable_device
from fourm_lite.nn.empty import without_storage

QK_NORM = "encoder.0.attn.q_norm.weight"

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint, Source


def load_model(
    source: Source,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FourM:
    """A model in eval mode.

    Args:
        source: a folder, a .safetensors file, a hub id, the name of a shipped model, or an open
            checkpoint
        inputs: names of the modalities to read; all by default
        outputs: names of the modalities to predict; all by default
        dtype: float32 by default, whatever the file holds
        device: the CPU by default

    Raises:
        CheckpointError: the file is damaged, or does not fit its config
        ConfigError: the config is wrong
        UnknownNameError: a modality that the model does not have

    Example:
        >>> model = load_model("EPFL-VILAB/4M-21_B", inputs=["rgb@224"],
        ...                    outputs=["tok_dinov2_global"])  # doctest: +SKIP
    """
    from fourm_lite.io.checkpoint import read

    device = usable_device(device)
    checkpoint = read(source)
    full = model_config(checkpoint)
    model = build_empty(full)
    _check_complete(model, checkpoint)
    if inputs is not None or outputs is not None:
        model = build_empty(full.only(inputs, outputs))
    fill(model, checkpoint, dtype=dtype or torch.float32, device=device)
    model.tie()
    is_4m = _fork(checkpoint.config) is FOURM
    family = family_of(checkpoint.config) if is_4m else None
    model.family = None if family is None else family.name
    return model.eval()


def model_config(checkpoint: Checkpoint) -> FourMConfig:
    """The config of a checkpoint, ours or ml-4m's."""
    from fourm_lite.io.keys import check_sizes
    from fourm_lite.io.ml4m import fourm_config

    config = dict(checkpoint.config)
    if "format" not in config:
        family = _fork(config)
        known = {**MODALITIES, **family.modalities}
        left_out = {**family.defaults, "qk_norm": QK_NORM in checkpoint.tensors}
        config = fourm_config(config, checkpoint, known, left_out) | dict(family.rules)
    config.pop("extra", None)
    full = FourMConfig.from_dict(config)
    check_sizes(full.to_dict(), checkpoint.tensors)  # before anything of these sizes is built
    return full


def _fork(config: Mapping[str, Any]) -> MaskedFamily:
    """Whose modalities a published config names: 4M's, or those of a fork."""
    sides = [config.get(f"domains_{side}") for side in ("in", "out")]
    return fork_of(
        n for side in sides if isinstance(side, list) for n in side if isinstance(n, str)
    )


def build_empty(config: FourMConfig) -> FourM:
    """The modules without storage.

    Raises:
        ConfigError: numbers or names that no module can have
    """
    with without_storage():
        return FourM(config)


def fill(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> None:
    """Gives a module without storage the tensors of a checkpoint, by name.

    Raises:
        CheckpointError: a tensor is missing, or has another shape or kind of number
    """
    expected = model.state_dict()
    tied = bool(getattr(getattr(model, "config", None), "tied_tables", False))
    source = {name: stored_name(name, checkpoint, tied=tied) for name in expected}
    for name, stored in source.items():
        _check_tensor(name, expected[name], stored, checkpoint)
    weights = checkpoint.load(set(source.values()), dtype=dtype, device=device)
    state = {name: weights[stored] for name, stored in source.items()}
    model.load_state_dict(state, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def stored_name(name: str, checkpoint: Checkpoint, *, tied: bool = False) -> str:
    """Under which name a tensor is stored: shared ones are stored once, under either name.

    `tied`: a target's token table may be stored under the name of its logits.
    """
    if name in checkpoint.tensors:
        return name
    if name in checkpoint.aliases:
        return checkpoint.aliases[name]
    if tied and name.endswith(".token_emb.weight"):
        twin = name.replace(".token_emb.", ".to_logits.")
        if twin in checkpoint.tensors:
            return twin
    if name.endswith(".mod_emb"):
        for here, there in (("encoder_", "decoder_"), ("decoder_", "encoder_")):
            twin = name.replace(f"{here}embeddings.", f"{there}embeddings.", 1)
            if twin in checkpoint.tensors:
                return twin
    return name


def _check_complete(model: FourM, checkpoint: Checkpoint) -> None:
    from fourm_lite.io.checkpoint import check_keys

    expected, config = model.state_dict(), model.config
    twins = [n for n in expected if n.endswith(".mod_emb")] * config.share_modality_embeddings
    twins += [n for n in expected if n.endswith(".token_emb.weight")] * config.tied_tables
    tied = config.tied_tables
    present = {n for n in twins if stored_name(n, checkpoint, tied=tied) in checkpoint.tensors}
    check_keys(expected, checkpoint.tensors, optional=present)


def _check_tensor(name: str, want: torch.Tensor, stored: str, checkpoint: Checkpoint) -> None:
    info = checkpoint.tensors.get(stored)
    if info is None:
        raise CheckpointError(f"{checkpoint.source} lacks the tensor {name!r}")
    if tuple(info.shape) != tuple(want.shape):
        raise CheckpointError(
            f"{checkpoint.source}: {name!r} should have shape {list(want.shape)} by the config, "
            f"the file holds {list(info.shape)}; the config and the weights are of different models"
        )
    if info.dtype not in FLOATING:
        raise CheckpointError(
            f"{checkpoint.source}: {name!r} should hold floating-point numbers "
            f"({', '.join(sorted(FLOATING))}), the file holds {info.dtype}"
        )
