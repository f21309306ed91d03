"""The configuration of a FourM model, and the table of its usual sizes.

The config is self-describing: it holds the full entry of every modality, so a checkpoint with a
user's own modality opens on a machine that has never heard of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fourm_lite.errors import ConfigError, check_choice, check_most
from fourm_lite.io.recipe import from_dict, items
from fourm_lite.modalities.spec import Modality
from fourm_lite.nn.blocks import MAX_DEPTH, MAX_WIDTH, BlockConfig

FORMAT = 1
POSITIONS = ("stored", "interpolated")


@dataclass(frozen=True, kw_only=True)
class FourMConfig(BlockConfig):
    """What a FourM model is made of: its blocks, and what is around them.

    The words are those of 4M's published configs.

    Units:
        positions: "stored" tables fit one grid; "interpolated" ones are resized to any
        tied_tables: whether a target's token table and logits are one tensor
    Raises:
        ConfigError: fields that contradict each other
    """

    inputs: tuple[Modality, ...]
    outputs: tuple[Modality, ...]
    dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    share_modality_embeddings: bool = True
    decoder_causal_mask: bool = False
    decoder_sep_mask: bool = True
    num_register_tokens: int = 0
    drop_path_rate_encoder: float = 0.0
    drop_path_rate_decoder: float = 0.0
    shared_drop_path: bool = False
    use_act_checkpoint: bool = False
    image_size: int = 224
    patch_size: int = 16
    positions: str = "stored"
    tied_tables: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        super().__post_init__()
        check_choice("positions", self.positions, of=POSITIONS)
        check_most(MAX_DEPTH, encoder_depth=self.encoder_depth, decoder_depth=self.decoder_depth)
        check_most(MAX_WIDTH, num_register_tokens=self.num_register_tokens)
        if self.dim % 4:
            raise ConfigError(f"dim must be a multiple of 4 (position tables), got {self.dim}")
        for side, entries in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [m.name for m in entries]
            if len(set(names)) < len(names):
                raise ConfigError(f"{side} name a modality twice: {names}")
        for entry in self.inputs:
            if not entry.is_input:
                raise ConfigError(f"'{entry.name}' cannot be an input: its directions say so")
        for entry in self.outputs:
            if not entry.is_target:
                raise ConfigError(f"'{entry.name}' cannot be a target: its directions say so")

    @property
    def block(self) -> BlockConfig:
        """The configuration of one transformer block."""
        return BlockConfig(**{f.name: getattr(self, f.name) for f in fields(BlockConfig)})

    @property
    def modalities(self) -> dict[str, Modality]:
        """Every modality of the model by name: the inputs, then what is only a target."""
        return {m.name: m for m in (*self.inputs, *self.outputs)}

    def only(
        self, inputs: Iterable[str] | None = None, outputs: Iterable[str] | None = None
    ) -> FourMConfig:
        """The same model with some of its modalities; None keeps them all.

        Raises:
            UnknownNameError: a name that the model does not have on that side
        """
        return replace(
            self,
            inputs=picked(self.inputs, inputs, "the model", "input"),
            outputs=picked(self.outputs, outputs, "the model", "target"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the format number of this version."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["inputs"] = [m.to_dict() for m in self.inputs]
        own["outputs"] = [m.to_dict() for m in self.outputs]
        return {"format": FORMAT, "kind": "fourm", **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FourMConfig:
        """The config behind `to_dict`.

        Raises:
            ConfigError: an unknown key, a wrong type, or a newer format
        """
        values = dict(data)
        version, kind = values.pop("format", FORMAT), values.pop("kind", "fourm")
        if version != FORMAT or kind != "fourm":
            raise ConfigError(
                f"expected a fourm config of format {FORMAT}, got {kind!r:.40}, format "
                f"{version!r:.40}; "
                "update fourm_lite, or check that this is a model and not a tokenizer"
            )
        for side in {"inputs", "outputs"} & values.keys():
            values[side] = tuple(map(Modality.from_dict, items(values[side], side)))
        return from_dict(cls, values)


def picked(
    entries: tuple[Modality, ...], names: Iterable[str] | None, what: str, side: str
) -> tuple[Modality, ...]:
    """The entries of these names, or all of them where None is asked for.

    Raises:
        UnknownNameError: there is none of such a name
    """
    if names is None:
        return entries
    by_name = {m.name: m for m in entries}
    wanted = [names] if isinstance(names, str) else list(names)
    check_choice(f"an {side} of {what}", *wanted, of=sorted(by_name))
    return tuple(by_name[name] for name in wanted)


_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"encoder_depth": 6, "decoder_depth": 6, "dim": 384, "num_heads": 6},
    "small": {"encoder_depth": 8, "decoder_depth": 8, "dim": 512, "num_heads": 8},
    "base": {"encoder_depth": 12, "decoder_depth": 12, "dim": 768, "num_heads": 12},
    "large": {"encoder_depth": 24, "decoder_depth": 24, "dim": 1024, "num_heads": 16},
    "xlarge": {"encoder_depth": 24, "decoder_depth": 24, "dim": 2048, "num_heads": 32},
}
_NO_BIAS = {"qkv_bias": False, "proj_bias": False, "mlp_bias": False, "norm_bias": False}
_SWIGLU: dict[str, Any] = {"act_layer": "SiLU", "gated_mlp": True, **_NO_BIAS}
_FLAVOURS: dict[str, dict[str, Any]] = {
    "gelu": {"act_layer": "GELU"},
    "swiglu_nobias": _SWIGLU,
    "swiglu_qknorm_nobias": {**_SWIGLU, "qk_norm": True},
}
PRESETS: dict[str, dict[str, Any]] = {
    f"{size}_{flavour}": {**shape, **style}
    for size, shape in _SIZES.items()
    for flavour, style in _FLAVOURS.items()
}
"""Keyword arguments of `FourMConfig` for the sizes and flavours of 4M: "base_swiglu_nobias", ..."""
