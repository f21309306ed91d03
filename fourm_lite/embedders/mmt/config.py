"""Numbers of a joint encoder: what its file or folder says, and what follows from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.families.joint import JOINT_FAMILIES, JointFamily

Pooling = Literal["cls", "max", "mean", "mean_sqrt"]  # in the order of the pooled vector
HeadInput = Literal["pooled", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """One network of a joint family.

    Args:
        family: a name of `JOINT_FAMILIES`
        num_heads: of attention
        max_words: tokens of a sentence, without the two around it
        max_regions: regions of a picture; the first ones count
        pooling: what a vector is made of; empty: the file states none
        head_inputs: what each matching head reads, the pooler's output or state 0
        lower_case: whether words are put in lower case
        eps, region_eps: of the LayerNorms
        dropout: while training
    """

    family: str
    num_heads: int
    max_words: int
    max_regions: int
    pooling: tuple[Pooling, ...] = ("mean",)
    head_inputs: Mapping[str, HeadInput] = field(default_factory=dict)
    lower_case: bool = False
    eps: float = 1e-12
    region_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.family not in JOINT_FAMILIES:
            raise ConfigError(
                f"a joint encoder is one of {sorted(JOINT_FAMILIES)}, got '{self.family}'."
                f"{suggest(self.family, JOINT_FAMILIES)}"
            )
        if unknown := [kind for kind in self.pooling if kind not in POOLINGS]:
            raise ConfigError(f"pooling is of {list(POOLINGS)}, got {unknown}")
        if min(self.num_heads, self.max_words, self.max_regions) < 1:
            raise ConfigError(
                "num_heads, max_words and max_regions are at least 1, got "
                f"{self.num_heads}, {self.max_words} and {self.max_regions}"
            )
        if unread := [n for n, kind in self.head_inputs.items() if kind not in get_args(HeadInput)]:
            raise ConfigError(f"heads read {list(get_args(HeadInput))}; these do not: {unread}")

    @property
    def layout(self) -> JointFamily:
        """The family's value."""
        return JOINT_FAMILIES[self.family]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the weights say."""

    vocabulary: int
    positions: int
    types: int
    width: int
    hidden: int
    depth: int
    features: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], family: JointFamily) -> Sizes:
        """The sizes of a network under our names.

        Raises:
            CheckpointError: a weight that every network of the family has is not there
        """
        joined = None if family.joined is None else f"{family.joined}.weight"
        region = "regions.features.weight" if joined not in weights else joined
        needed = ["words.weight", "positions.weight", "blocks.0.fc1.weight", str(region)]
        if absent := [name for name in needed if name not in weights]:
            raise CheckpointError(f"a file of {family.title} needs the weights {absent}")
        words, positions, hidden, features = (weights[name] for name in needed)
        blocks = {key.split(".")[1] for key in weights if key.startswith("blocks.")}
        extra = len(family.geometry) if region == joined else 0
        return cls(
            vocabulary=words.shape[0],
            positions=positions.shape[0],
            types=weights["types.weight"].shape[0] if "types.weight" in weights else 0,
            width=words.shape[1],
            hidden=hidden.shape[0],
            depth=len(blocks),
            features=features.shape[1] - extra,
        )


def published_heads(width: int) -> int:
    """How many heads published networks of a width have, where no file says it.

    >>> published_heads(768), published_heads(1024)
    (12, 16)

    Raises:
        ConfigError: no published network is of this width
    """
    number = width // 64 if width >= 1024 else 12
    if width % number:
        raise ConfigError(
            f"no file says how many attention heads a network of width {width} has, and neither 12 "
            "nor width/64 divides it; give heads=NUMBER"
        )
    return number


def read_config(values: Mapping[str, Any]) -> JointConfig:
    """The configuration that `convert` wrote, checked.

    Raises:
        ConfigError: an unknown or missing key
    """
    known = JointConfig.__dataclass_fields__
    given = {k: v for k, v in values.items() if k not in ("format", "door")}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(
            f"config.json has the unknown key '{unknown[0]}'.{suggest(unknown[0], known)}"
        )
    try:
        return JointConfig(**{**given, "pooling": tuple(given.get("pooling", ()))})
    except TypeError as error:
        raise ConfigError(f"config.json is no joint encoder's: {error}") from error
