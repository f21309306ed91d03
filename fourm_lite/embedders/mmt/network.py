"""The joint encoder: post-norm BERT over words and regions, laid out as its family says.

Padding never counts: it is masked in attention, and positions are counted along what is there, so
an item gives the same vector alone and beside others. (The original of M3P masks the wrong ones.)
Its numbers are what a file or folder says, and what follows from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.errors import CheckpointError, ConfigError, check_choice, suggest
from fourm_lite.families.joint import JOINT_FAMILIES, JointFamily
from fourm_lite.nn.device import threads_for

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
        check_choice("a joint encoder", self.family, of=sorted(JOINT_FAMILIES))
        check_choice("pooling", *self.pooling, of=POOLINGS)
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


@dataclass(frozen=True)
class JointBatch:
    """Words and regions of a batch, each padded at the right.

    Shapes:
        ids, types: int64[B, T]; words: bool[B, T], True where there is a token
        features: float32[B, R, F]; geometry: float32[B, R, G]; regions: bool[B, R]
    """

    ids: Tensor
    types: Tensor
    words: Tensor
    features: Tensor
    geometry: Tensor
    regions: Tensor

    def to(self, device: torch.device | str) -> JointBatch:
        """The same on a device."""
        return JointBatch(*(getattr(self, n).to(device) for n in self.__dataclass_fields__))


@dataclass(frozen=True)
class States:
    """The states of a batch: float32[B, N, D], valid where there is a word or a region."""

    tokens: Tensor
    valid: Tensor

    def pooled(self, kinds: tuple[Pooling, ...]) -> Tensor:
        """The pooled states side by side, float32[B, len(kinds) * D]."""
        return torch.cat([POOLS[kind](self) for kind in kinds], dim=1)

    def sums(self) -> tuple[Tensor, Tensor]:
        """The sum over what is there, [B, D], and how much is there, [B, 1]."""
        kept = self.valid[..., None]
        return (self.tokens * kept).sum(1), kept.sum(1)


def _mean(states: States) -> Tensor:
    total, count = states.sums()
    return total / count


def _mean_sqrt(states: States) -> Tensor:
    total, count = states.sums()
    return total / count.sqrt()


POOLS = {
    "cls": lambda states: states.tokens[:, 0],
    "max": lambda states: states.tokens.masked_fill(~states.valid[..., None], -torch.inf).amax(1),
    "mean": _mean,
    "mean_sqrt": _mean_sqrt,
}


class JointEncoder(nn.Module):
    """One network of a joint family with its matching heads; names are ours."""

    def __init__(self, config: JointConfig, sizes: Sizes, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        if sizes.width % config.num_heads:
            raise ConfigError(
                f"the width {sizes.width} is no multiple of {config.num_heads} attention heads"
            )
        family, width = config.layout, sizes.width
        self.config, self.sizes = config, sizes
        self.words = nn.Embedding(sizes.vocabulary, width)
        self.positions = nn.Embedding(sizes.positions, width)
        self.types = nn.Embedding(sizes.types, width) if family.has_types else None
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.regions = RegionEmbedding(config, sizes)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PostNormBlock(config, sizes) for _ in range(sizes.depth))
        self.pooler = nn.Linear(width, width)
        self.heads = nn.ModuleDict(heads)

    @property
    def family(self) -> JointFamily:
        """The value that lays it out."""
        return self.config.layout

    def forward(self, batch: JointBatch) -> States:
        """States of every word and region."""
        x, valid = self._embedded(batch)
        # [B, 1, 1, N]: a row of the mask for all queries
        attend = None if bool(valid.all()) else valid[:, None, None]
        x = self.drop(x)
        with threads_for(x.shape[0] * x.shape[1]):
            for block in self.blocks:
                x = block(x, attend)
        return States(x, valid)

    def _embedded(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        words = self.words(batch.ids)
        if self.types is not None:
            words = words + self.types(batch.types)
        if self.family.positions == "words":
            words = self.norm(words + self.positions.weight[: words.shape[1]])
        regions = words[:, :0]
        if batch.regions.shape[1]:
            regions = self.regions(batch.features, batch.geometry, self.types)
        parts = [(words, batch.words), (regions, batch.regions)]
        if self.family.regions_first:
            parts.reverse()
        x, valid = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if self.family.positions == "sequence":
            places = (valid.cumsum(1) - 1).clamp(min=0)
            x = self.norm(x + self.positions(places))
        return x, valid

    def head_logits(self, states: States, name: str) -> Tensor:
        """What a matching head says, float32[B, labels]."""
        first = states.tokens[:, 0]
        if self.config.head_inputs[name] == "pooled":
            first = torch.tanh(self.pooler(first))
        found: Tensor = self.heads[name](self.drop(first))
        return found


class RegionEmbedding(nn.Module):
    """Features and geometry of regions in one width; norms and types as the family says."""

    def __init__(self, config: JointConfig, sizes: Sizes) -> None:
        super().__init__()
        family = config.layout
        self.features = nn.Linear(sizes.features, sizes.width)
        # where the file keeps one matrix for both, there is one bias
        bias = family.joined is None
        self.geometry = nn.Linear(len(family.geometry), sizes.width, bias=bias)
        self.region_type = family.region_type
        eps = config.region_eps
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(sizes.width, eps=eps) for name in family.region_norms}
        )

    def forward(self, features: Tensor, geometry: Tensor, types: nn.Embedding | None) -> Tensor:
        """[B, R, F], [B, R, G] -> [B, R, D]."""
        x = self._norm("features", self.features(features))
        x = x + self._norm("geometry", self.geometry(geometry))
        if self.region_type is not None and types is not None:
            x = x + types.weight[self.region_type]
        return self._norm("sum", x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if name not in self.norms:
            return x
        normed: Tensor = self.norms[name](x)
        return normed


class PostNormBlock(nn.Module):
    """Attention and MLP, each added and then normalised."""

    def __init__(self, config: JointConfig, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.num_heads = config.num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=config.eps)
        self.fc1 = nn.Linear(width, sizes.hidden)
        self.fc2 = nn.Linear(sizes.hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=config.eps)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """[B, N, D] -> [B, N, D]; `attend` is True where a key may be read."""
        q, k, v = (
            rearrange(linear(x), "b n (h d) -> b h n d", h=self.num_heads)
            for linear in (self.query, self.key, self.value)
        )
        read = rearrange(F.scaled_dot_product_attention(q, k, v, attend), "b h n d -> b n (h d)")
        x = self.norm1(x + self.drop(self.proj(read)))
        normed: Tensor = self.norm2(x + self.drop(self.fc2(F.gelu(self.fc1(x)))))
        return normed
