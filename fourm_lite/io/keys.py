"""Strict comparison of what a configuration promises with the tensors that a file holds.

Called before anything is built: a configuration that claims a billion blocks costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.io.tensor_info import TensorInfo

SHOWN = 10
MAX_DEPTH = 1024
SEQUENCE_ROWS = 512  # every sequence and feature modality stores this many position rows
_BLOCK = re.compile(r"(encoder|decoder)\.([0-9]{1,6})\.")


def near(name: str, known: Iterable[str]) -> str:
    """`suggest` at a bounded cost, however many and however long the names are."""
    close = [k[:200] for k in known if abs(len(k) - len(name)) <= 4]
    return suggest(name[:200], close[:512])


def check_keys(
    expected: Iterable[str], found: Iterable[str], *, optional: Iterable[str] = ()
) -> None:
    """Compares tensor names; `optional` ones may be there or not.

    Raises:
        CheckpointError: names are missing or unexpected; the first ten are told, with near names
    """
    wanted, present, free = set(expected), set(found), set(optional)
    missing = sorted(wanted - present - free)
    unexpected = sorted(present - wanted - free)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_listed(missing, unexpected)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_listed(unexpected, missing)}")
    raise CheckpointError(
        "the weights do not fit the config "
        f"({len(wanted)} tensors expected, {len(present)} found): " + "; ".join(parts)
    )


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Compares a fourm config (our own form) with the shapes in the file, building nothing.

    What is missing in the file is not told here but by `check_keys`.

    Raises:
        ConfigError: a number is absurd
        CheckpointError: width, depth, a vocabulary or a position table differs from the file's
    """
    for side in ("encoder", "decoder"):
        _check_depth(side, config.get(f"{side}_depth"), tensors)
    dim = config.get("dim")
    _check_rows("the config key 'dim'", dim, tensors, "encoder_norm.weight")
    _check_rows("the config key 'dim'", dim, tensors, "mask_token", axis=2)
    _check_hidden(config, tensors)
    registers = config.get("num_register_tokens", 0)
    _check_rows("'num_register_tokens'", registers, tensors, "register_tokens", axis=1)
    if registers and "register_tokens" not in tensors:
        raise CheckpointError(f"the config has num_register_tokens={registers}, the file has none")
    for side, table in (("inputs", "encoder"), ("outputs", "decoder")):
        for entry in config.get(side, ()):
            check_modality(entry, f"{table}_embeddings.{entry.get('name')}", tensors)


def check_modality(
    entry: Mapping[str, Any], prefix: str, tensors: Mapping[str, TensorInfo]
) -> None:
    """Compares one modality's entry with its tensors.

    Raises:
        CheckpointError: the vocabulary, the number of positions or the channels differ
    """
    what = f"the modality '{entry.get('name')}'"
    kind = entry.get("kind")
    for table in ("token_emb", "to_logits"):
        label = f"vocab_size of {what}"
        _check_rows(label, entry.get("vocab_size"), tensors, f"{prefix}.{table}.weight")
    rows = SEQUENCE_ROWS if kind in ("sequence", "features") else entry.get("max_tokens")
    _check_rows(f"positions of {what}", rows, tensors, f"{prefix}.pos_emb", axis=1)
    channels = entry.get("channels")
    if kind == "features":
        _check_rows(f"channels of {what}", channels, tensors, f"{prefix}.emb_proj.weight", axis=1)
    patch = entry.get("patch_size")
    if kind == "pixels" and isinstance(channels, int) and isinstance(patch, int):
        values = channels * patch * patch
        _check_rows(
            f"values of a patch of {what}", values, tensors, f"{prefix}.proj.weight", axis=1
        )


def _check_rows(
    what: str, want: Any, tensors: Mapping[str, TensorInfo], name: str, *, axis: int = 0
) -> None:
    info = tensors.get(name)
    if info is None:
        return
    if len(info.shape) <= axis or info.shape[axis] != want:
        raise CheckpointError(
            f"{what} should be {want}, but {name!r} in the file has shape {list(info.shape)}; "
            "the config and the weights are of different models"
        )


def _check_depth(side: str, depth: Any, tensors: Mapping[str, TensorInfo]) -> None:
    if not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
        raise ConfigError(f"{side}_depth should be between 0 and {MAX_DEPTH}, got {depth!r:.40}")
    found = (_BLOCK.match(name) for name in tensors)
    blocks = {int(m.group(2)) for m in found if m and m.group(1) == side}
    if blocks and max(blocks) + 1 != depth:
        raise CheckpointError(
            f"the config has {side}_depth={depth}, the file holds blocks up to "
            f"{side}.{max(blocks)}; the config and the weights are of different models"
        )


def _check_hidden(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    dim, ratio = config.get("dim"), config.get("mlp_ratio", 4.0)
    try:
        hidden = int(dim * ratio)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"mlp_ratio should be a number, got {ratio!r:.40}") from None
    if config.get("gated_mlp"):
        hidden = int(2 * hidden / 3)
    for side in ("encoder", "decoder"):
        label = f"the hidden width (mlp_ratio={ratio}, gated_mlp={config.get('gated_mlp')})"
        _check_rows(label, hidden, tensors, f"{side}.0.mlp.fc1.weight")


def _listed(names: list[str], others: Collection[str]) -> str:
    shown = [f"{name[:200]!r}{near(name, others)}".rstrip(".") for name in names[:SHOWN]]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + rest
