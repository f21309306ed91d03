"""What an FMViT and its head are made of: frozen values that are saved beside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from fourm_lite.errors import ConfigError, check_choice
from fourm_lite.io.recipe import from_dict
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD, Modality
from fourm_lite.model.config import FORMAT, FourMConfig, picked
from fourm_lite.nn.blocks import BlockConfig

Pool = Literal["avg", "attentive", "none"]
MAX_LAYERS = 64
TIMM_CFG: dict[str, Any] = {
    "url": "", "pool_size": None, "fixed_input_size": False, "crop_pct": 1.0, "crop_mode": "center",
    "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "first_conv": None,
    "classifier": "head",
}  # fmt: skip
"""How images are prepared, in timm's words: as in 4M's training."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A classifier, and what its outputs are called.

    Units:
        num_classes: 0 for no classifier; forward then gives the pooled features
        pool: "avg" is the mean of the tokens, "attentive" a learned query, "none" keeps the tokens
        layers: linear maps of the classifier; with more than one, GELU between them
        multi_label: each class is a yes or no of its own
        dropout: before the last map
    """

    num_classes: int = 1000
    pool: Pool = "avg"
    layers: int = 1
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what no head has."""
        if self.num_classes < 0 or not 1 <= self.layers <= MAX_LAYERS or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"a head needs num_classes >= 0, 1 to {MAX_LAYERS} layers and 0 <= dropout < 1, "
                f"got {self}"
            )
        check_choice("the pool of a head", self.pool, of=get_args(Pool))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"{len(self.class_names)} class names for num_classes={self.num_classes}; "
                "give one name a class, or none"
            )

    @property
    def is_linear(self) -> bool:
        """Whether it is a mean, a norm and one linear map."""
        plain = self.pool == "avg" and self.layers == 1 and not self.dropout
        return plain and self.num_classes > 0

    def name_of(self, index: int) -> str:
        """The name of a class, or its number where none was given."""
        return self.class_names[index] if self.class_names else str(index)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What an FMViT is made of.

    Units:
        inputs: the modalities that it reads; one of pixels makes it a vision transformer
        num_register_tokens: learned tokens that 4M puts before all others
    """

    inputs: tuple[Modality, ...]
    block: BlockConfig
    depth: int = 12
    head: HeadConfig = field(default_factory=HeadConfig)
    num_register_tokens: int = 0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuses contradictions."""
        names = [m.name for m in self.inputs]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"an FMViT reads at least one modality and none twice, got {names}")
        for entry in self.inputs:
            if not entry.is_input:
                raise ConfigError(f"'{entry.name}' cannot be an input: its directions say so")

    @property
    def has_pixels(self) -> bool:
        """Whether it reads images."""
        return any(m.kind == "pixels" for m in self.inputs)

    @property
    def pixels(self) -> Modality:
        """The modality that a bare image tensor stands for: the first one of pixels.

        Raises:
            ConfigError: none is of pixels
        """
        for entry in self.inputs:
            if entry.kind == "pixels":
                return entry
        raise ConfigError(
            f"this FMViT reads {[m.name for m in self.inputs]} and no pixels; "
            "give it a TokenBatch instead of an image"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return self.head.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, if they are known."""
        return self.head.class_names

    def data_config(
        self, input_size: tuple[int, int, int] | None, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What images should be like, in timm's words; what `before` says beyond that stays."""
        own = {"num_classes": self.num_classes, "input_size": input_size}
        return {**TIMM_CFG, **before, **own, "modalities": [m.name for m in self.inputs]}

    @classmethod
    def of(
        cls, config: FourMConfig, inputs: Iterable[str] | None = None, **changes: Any
    ) -> ViTConfig:
        """The ViT inside a FourM config: its pixels at the model's size, or the named modalities.

        Raises:
            ConfigError: the model reads no pixels and no names were given
            UnknownNameError: a name that the model does not read
        """
        values = {
            "depth": config.encoder_depth,
            "drop_path_rate": config.drop_path_rate_encoder,
            "num_register_tokens": config.num_register_tokens,
            **changes,
        }
        chosen = own_pixels(config) if inputs is None else config.only(inputs=inputs).inputs
        return cls(inputs=chosen, block=config.block, **values)

    def only(self, inputs: Iterable[str] | None) -> ViTConfig:
        """The same with some of its modalities; None keeps them all.

        Raises:
            UnknownNameError: a name that it does not read
        """
        return replace(self, inputs=picked(self.inputs, inputs, "this FMViT", "input"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the format number of this version."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["inputs"] = [m.to_dict() for m in self.inputs]
        own["block"] = asdict(self.block)
        own["head"] = {**asdict(self.head), "class_names": list(self.head.class_names)}
        return {"format": FORMAT, "kind": "fmvit", **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        """The config behind `to_dict`.

        Raises:
            ConfigError: an unknown key, or a newer format
        """
        if data.get("format", FORMAT) != FORMAT:
            raise ConfigError(
                f"expected an fmvit config of format {FORMAT}, got {data['format']!r}; "
                "update fourm_lite"
            )
        values = {k: v for k, v in data.items() if k not in ("format", "kind", "extra")}
        entries = values.get("inputs")
        if not isinstance(entries, list | tuple):
            raise ConfigError(f"inputs of an fmvit config should be a list, got {entries!r:.80}")
        values["inputs"] = tuple(Modality.from_dict(m) for m in entries)
        return from_dict(cls, values)


def pool_of(word: str) -> Pool:
    """What timm calls "avg", "map" (attentive) or "" (tokens).

    Raises:
        ConfigError: none of these
    """
    pools: dict[str, Pool] = {"map": "attentive", "": "none", **{p: p for p in get_args(Pool)}}
    check_choice("global_pool", word, of=pools)
    return pools[word]


def own_pixels(config: FourMConfig) -> tuple[Modality, ...]:
    """The pixels that a FourM model reads, at its own image size where it has several.

    Raises:
        ConfigError: it reads none
    """
    pixels = [m for m in config.inputs if m.kind == "pixels"]
    if not pixels:
        raise ConfigError(
            f"this model reads no pixels, only {[m.name for m in config.inputs]}; "
            "choose what the classifier reads with inputs=[...]"
        )
    return (next((m for m in pixels if m.image_size == config.image_size), pixels[0]),)
