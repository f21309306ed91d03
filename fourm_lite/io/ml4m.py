"""The boundary to ml-4m: its configurations in our own form. No other file knows them.

Tensor names need no translation: the modules of `fourm_lite.model` bear ml-4m's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fourm_lite.errors import ConfigError
from fourm_lite.io.infer import infer_modality
from fourm_lite.io.keys import check_sizes, near

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint

FORMAT = 1


class Entry(Protocol):
    """What this file asks of a known modality; `modalities.spec.Modality` is one."""

    @property
    def follows_model_size(self) -> bool:
        """Whether its grid follows the image size of the model."""

    @property
    def patch_size(self) -> int | None:
        """Pixels of a patch."""

    @property
    def is_target(self) -> bool:
        """Whether a decoder can predict it."""

    def sized(self, resolution: int) -> Entry:
        """The same for images of another size."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON values."""


@dataclass(frozen=True)
class Key:
    """One key of an ml-4m config."""

    type: type
    default: Any = None
    required: bool = False


FM_KEYS: dict[str, Key] = {
    "domains_in": Key(list, required=True),
    "domains_out": Key(list, required=True),
    "image_size": Key(int, required=True),
    "patch_size": Key(int, required=True),
    "dim": Key(int, 768),
    "encoder_depth": Key(int, 12),
    "decoder_depth": Key(int, 12),
    "num_heads": Key(int, 12),
    "mlp_ratio": Key(float, 4.0),
    "qkv_bias": Key(bool, True),
    "proj_bias": Key(bool, True),
    "mlp_bias": Key(bool, True),
    "act_layer": Key(str, required=True),
    "norm_bias": Key(bool, required=True),
    "gated_mlp": Key(bool, False),
    "qk_norm": Key(bool, False),
    "share_modality_embeddings": Key(bool, True),
    "decoder_causal_mask": Key(bool, False),
    "decoder_sep_mask": Key(bool, True),
    "num_register_tokens": Key(int, 0),
    "drop_path_rate_encoder": Key(float, 0.0),
    "drop_path_rate_decoder": Key(float, 0.0),
    "shared_drop_path": Key(bool, False),
    "use_act_checkpoint": Key(bool, False),
}
# What a file of the ViT alone may leave out: none of it reaches the encoder. Its norms store a bias
# either way (zeros where the model has none).
VIT_DEFAULTS: dict[str, Any] = {"domains_out": [], "decoder_depth": 0, "norm_bias": True}
_TOKENIZER_KEYS = {"codebook_size", "quant_type", "enc_type", "dec_type", "latent_dim"}
MAX_SIZE = 1 << 20


def fourm_config(
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    modalities: Mapping[str, Entry],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An ml-4m FM (or FMViT) config in our own, self-describing form.

    `defaults` are keys that the files of a fork leave out. Names that `modalities` does not hold
    are inferred from the tensors; domains_out entries that no decoder can predict (t5_caption) are
    left out, as in ml-4m.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type
        CheckpointError: the config disagrees with the shapes in the file
    """
    values = _checked(config, checkpoint, defaults or {})
    names = {side: values.pop(f"domains_{side}") for side in ("in", "out")}
    entries = {
        name: _entry(name, checkpoint, modalities, values)
        for name in dict.fromkeys((*names["in"], *names["out"]))
    }
    own = {
        "format": FORMAT,
        "kind": "fourm",
        **values,
        "inputs": [_needed(entries[name], name) for name in names["in"]],
        "outputs": [
            _needed(entries[name], name)
            for name in names["out"]
            if _is_target(name, entries[name], modalities)
        ],
    }
    check_sizes(own, checkpoint.tensors)
    return own


def _checked(
    config: Mapping[str, Any], checkpoint: Checkpoint, left_out: Mapping[str, Any]
) -> dict[str, Any]:
    """Every key of `FM_KEYS` with a value of its type, defaults filled in."""
    for name in config:
        if name not in FM_KEYS:
            raise ConfigError(_unknown(name, config))
    defaults = {**left_out, **_vit_defaults(checkpoint)}
    values = {}
    for name, key in FM_KEYS.items():
        if name not in config and key.required and name not in defaults:
            raise ConfigError(f"the config of a 4M model needs the key {name!r}, it is missing")
        value = config.get(name, defaults.get(name, key.default))
        values[name] = _typed(name, value, key.type)
    return values


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    hint = near(str(name), FM_KEYS)
    if len(_TOKENIZER_KEYS & set(config)) >= 2:
        hint = " This looks like a tokenizer: open it with fourm_lite.load_tokenizer."
    return f"the config of a 4M model has no key {str(name)[:80]!r}.{hint}"


def _vit_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Defaults for a file that holds no decoder."""
    if any(name.startswith(("decoder", "mask_token")) for name in checkpoint.tensors):
        return {}
    head = "encoder_embeddings."
    names = (name for name in checkpoint.tensors if name.startswith(head))
    inputs = dict.fromkeys(name.removeprefix(head).split(".", 1)[0] for name in names)
    return {**VIT_DEFAULTS, "domains_in": list(inputs)}


def _typed(name: str, value: Any, wanted: type) -> Any:
    if wanted is float and type(value) is int and abs(value) <= MAX_SIZE:
        value = float(value)
    if type(value) is tuple and wanted is list:
        value = list(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"the config key {name!r} should be of type {wanted.__name__}, got {value!r:.80}"
        )
    if isinstance(value, int) and not 0 <= value <= MAX_SIZE:
        raise ConfigError(f"the config key {name!r} should be 0 to {MAX_SIZE}, got {value!r:.40}")
    if isinstance(value, list):
        _check_names(name, value)
    return value


def _check_names(key: str, names: list[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or not name or len(name) > 200:
            raise ConfigError(
                f"the config key {key!r} should list names of modalities, got {name!r:.80}"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"the config key {key!r} lists {twice!r} twice")


def _entry(
    name: str,
    checkpoint: Checkpoint,
    modalities: Mapping[str, Entry],
    values: Mapping[str, Any],
) -> dict[str, Any] | None:
    size, patch = values["image_size"], values["patch_size"]
    if name not in modalities:
        return infer_modality(name, checkpoint, image_size=size, patch_size=patch)
    entry = modalities[name]
    if entry.follows_model_size and entry.patch_size:
        entry = entry.sized(size // entry.patch_size * entry.patch_size)
    return entry.to_dict()


def _is_target(name: str, entry: dict[str, Any] | None, modalities: Mapping[str, Entry]) -> bool:
    if name in modalities:
        return modalities[name].is_target
    return entry is None or entry["kind"] != "features"


def _needed(entry: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if entry is None:
        raise ConfigError(
            f"the config names the modality {name!r}, which is neither known here nor has tensors "
            f"in the file; register it with fourm_lite.register(Modality(...))"
        )
    return entry
