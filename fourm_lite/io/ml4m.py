"""The boundary to ml-4m: its configurations in our own form. No other file knows them.

Tensor names need no translation: the modules of `fourm_lite.model` bear ml-4m's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from fourm_lite.errors import ConfigError
from fourm_lite.io.infer import infer_modality
from fourm_lite.io.keys import check_sizes, near
from fourm_lite.io.recipe import from_dict

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


@dataclass(frozen=True, kw_only=True)
class FMKeys:
    """The keys of an ml-4m config, and its defaults."""

    domains_in: list[str]
    domains_out: list[str]
    image_size: int
    patch_size: int
    dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    act_layer: str
    norm_bias: bool
    gated_mlp: bool = False
    qk_norm: bool = False
    share_modality_embeddings: bool = True
    decoder_causal_mask: bool = False
    decoder_sep_mask: bool = True
    num_register_tokens: int = 0
    drop_path_rate_encoder: float = 0.0
    drop_path_rate_decoder: float = 0.0
    shared_drop_path: bool = False
    use_act_checkpoint: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers that no model has, and lists that name a modality twice."""
        for name, value in vars(self).items():
            if isinstance(value, int) and not 0 <= value <= MAX_SIZE:
                raise ConfigError(f"'{name}' should be 0 to {MAX_SIZE}, got {value!r:.40}")
        for key in ("domains_in", "domains_out"):
            _check_names(key, getattr(self, key))


# What a file of the ViT alone may leave out: none of it reaches the encoder. Its norms store a bias
# either way (zeros where the model has none).
VIT_DEFAULTS: dict[str, Any] = {"domains_out": [], "decoder_depth": 0, "norm_bias": True}
_TOKENIZER_KEYS = {"codebook_size", "quant_type", "enc_type", "dec_type", "latent_dim"}
MAX_SIZE = 1 << 20
FM_NAMES = tuple(f.name for f in fields(FMKeys))


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
    """Every key of `FMKeys` with a value of its type, defaults filled in."""
    for name in config:
        if name not in FM_NAMES:
            raise ConfigError(_unknown(name, config))
    keys = {**left_out, **_vit_defaults(checkpoint), **config}
    try:
        return vars(from_dict(FMKeys, keys))
    except ConfigError as error:
        raise ConfigError(f"the config of a 4M model: {error}") from error


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    hint = near(str(name), FM_NAMES)
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


def _check_names(key: str, names: list[str]) -> None:
    for name in names:
        if not name or len(name) > 200:
            raise ConfigError(f"{key!r} should list names of modalities, got {name!r:.80}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{key!r} lists {twice!r} twice")


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
