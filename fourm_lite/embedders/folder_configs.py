"""What the configuration in a network's folder may say to the library that builds it: shapes alone.

timm, transformers and open_clip pass what they find there on to functions that also take paths,
addresses and switches, so a file that came with some weights would decide what is fetched, read or
run. Here those are sorted out first. Knows JSON values only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fourm_lite.errors import CheckpointError
from fourm_lite.io.strict_json import levels
from fourm_lite.names import is_name

MAX_NUMBER = 1 << 16
MAX_DEPTH = 1024
TIMM_ARGUMENTS = frozenset((
    "act_layer", "attn_drop_rate", "attn_head_dim", "block_dpr_rate", "class_token", "conv_bias",
    "depth", "depths", "dims", "drop_path_rate", "drop_rate", "dynamic_img_pad",
    "dynamic_img_size", "embed_dim", "embed_dims", "fc_norm", "final_norm", "global_pool",
    "head_init_scale", "head_norm_first", "hidden_size", "img_size", "in_chans", "init_values",
    "kernel_sizes", "layer_scale_init_value", "layers", "ls_init_value", "mlp_ratio",
    "mlp_ratios", "no_embed_class", "norm_layer", "norm_eps", "num_classes", "num_heads",
    "num_prefix_tokens", "num_reg_tokens", "output_stride", "patch_drop_rate", "patch_size",
    "pool_include_prefix", "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias",
    "proj_drop_rate", "qk_norm", "qkv_bias", "qkv_fused", "ref_feat_shape", "reg_tokens",
    "rope_grid_offset", "rope_temperature", "rope_type", "scale_attn_norm", "scale_mlp_norm",
    "stem_type", "strict_img_size", "swiglu_mlp", "use_abs_pos_emb", "use_fc_norm",
    "use_post_norm", "use_rel_pos_bias", "use_rot_pos_emb", "use_shared_rel_pos_bias",
    "weight_init", "window_ratio", "window_size",
))  # fmt: skip
"""Arguments of timm's models that say how a network is shaped, and nothing about where it lies."""

PICTURE_KEYS = (
    "architecture", "tag", "input_size", "fixed_input_size", "min_input_size", "test_input_size",
    "interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std", "num_classes",
    "pool_size", "first_conv", "classifier", "license",
)  # fmt: skip
"""Of timm's `pretrained_cfg` all that says how pictures are prepared, and no place of weights."""

# Keys that make a library fetch or run something else than the folder that was named
_SWITCHES = frozenset(
    {"trust_remote_code", "use_pretrained_backbone", "timm_model_pretrained", "hf_model_pretrained"}
)
_PLACES = frozenset({"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"})


def timm_arguments(stored: Any, path: Path, tensors: int) -> dict[str, Any]:
    """The `model_args` of a timm configuration, if each shapes a network.

    Units:
        tensors: how many the weights hold; a network has no more blocks
    Raises:
        CheckpointError: one is not of `TIMM_ARGUMENTS`, or no plain value of a sensible size
    """
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"'model_args' in {path} should be a table, got {stored!r:.80}")
    for name, value in stored.items():
        if name not in TIMM_ARGUMENTS:
            raise CheckpointError(
                f"'model_args' in {path} may say how the network is shaped, not {name!r:.80}; "
                "take it out of the file if you know what it does"
            )
        if not _is_plain(value, MAX_NUMBER):
            raise CheckpointError(
                f"{name!r} in {path} should be a plain value below {MAX_NUMBER}, got {value!r:.80}"
            )
        if name in ("depth", "depths", "layers") and not _is_plain(value, min(tensors, MAX_DEPTH)):
            raise CheckpointError(
                f"{name!r} in {path} asks for {value!r:.80} blocks, the weights hold {tensors} "
                "tensors"
            )
    return dict(stored)


def check_config(config: Any, path: Path) -> None:
    """Refuses a configuration that sends its library elsewhere or asks it to run code.

    Raises:
        CheckpointError: it does; the key is named
    """
    for name, value in _entries(config):
        if name in _SWITCHES and value:
            raise CheckpointError(
                f"{path} asks for '{name}': code or other weights of its author's choice; a folder "
                "is read for what lies in it, take the key out"
            )
        if name in _PLACES and isinstance(value, str | Mapping) and value:
            raise CheckpointError(f"{path} names a place under '{name}'; take the key out")
        if name == "model_args" and value is not None:
            timm_arguments(value, path, MAX_DEPTH)
        if name == "architecture" and isinstance(value, str) and not is_name(value):
            raise CheckpointError(f"'architecture' in {path} should be a name, got {value!r:.80}")


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what stands under it, at any depth."""
    for level in levels(config):
        for value in level:
            if isinstance(value, Mapping):
                yield from value.items()


def _is_plain(value: Any, limit: int) -> bool:
    """A number below a limit, a switch, a plain word, or a short list of these."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_is_plain(v, limit) for v in value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return 0 <= value <= limit
    return value == "" or is_name(value)
