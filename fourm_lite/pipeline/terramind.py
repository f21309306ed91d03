"""TerraMind's chains: pictures of a place to tokens of other modalities of it.

Targets are made in their order, each visible to the next; pictures of any size whose sides are
multiples of 16 are read, positions are interpolated. The seed decides, not a global one, and what
the caller gives is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fourm_lite.backbone.merged import MergedViT, Output
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.modalities.forks import STATISTICS, key_of
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import Grid, narrowed, square
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.tokenization.vq.vqvae import VQTokenizer


@dataclass(frozen=True)
class ChainOptions:
    """How tokens are drawn; the defaults are those of TerraMind's own chains.

    Args:
        steps: forward passes a picture
        temperature: 0 is the likeliest token
        top_p: keeps the likeliest tokens that make up this share
        top_k: keeps so many; 0 is off
        standardize: whether pixels are given in their own units
        version: of the statistics, "v1" or "v01"; "" is that of the model
    """

    steps: int = 1
    temperature: float = 1.0
    top_p: float = 0.8
    top_k: int = 0
    standardize: bool = False
    version: str = ""


@dataclass(frozen=True)
class Chain:
    """A chain on a model: what is read, what is made.

    Args:
        model: TerraMind
        targets: "S1GRD", "LULC", "coords", ... in their order
        options: how tokens are drawn
        visible: whether a finished target is read by the next ones
        tokenizers: by target, what decodes its tokens
    """

    model: FourM
    targets: Sequence[str]
    options: ChainOptions = field(default_factory=ChainOptions)
    visible: bool = True
    tokenizers: Mapping[str, VQTokenizer] = field(default_factory=dict)

    def tokens(self, inputs: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
        """Tokens int64[B, L] of every target, by the names that it was asked for.

        Raises:
            ConfigError: nothing is given, or no target
            ShapeError: pictures of different sizes, or sides that are no multiples of 16
            UnknownNameError: a name that TerraMind does not have
        """
        sampler, batch, plan = self.prepared(inputs)
        made = sampler.run(batch, plan, seed=seed)
        # a copy, which may be read where gradients are kept
        return {name: made[key_of(name, "target")].value.clone() for name in self.targets}

    def maps(self, inputs: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
        """As `tokens`, those of pictures as int64[B, h, w]."""
        grid, found = self._grid(inputs), self.tokens(inputs, seed=seed)
        kinds = {name: self.model.modality(key_of(name, "target")).kind for name in found}
        return {n: v if kinds[n] == "sequence" else v.unflatten(1, grid) for n, v in found.items()}

    def __call__(self, inputs: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
        """Pictures of every target in their own units, or tokens where nothing decodes them."""
        found = {}
        for name, tokens in self.maps(inputs, seed=seed).items():
            tokenizer = self.tokenizers.get(name)
            found[name] = tokens.flatten(1)
            if tokenizer is not None:
                decoded, key = tokenizer.detokenize(tokens), key_of(name, "target")
                found[name] = restored(decoded, key, self._version(key))
        return found

    def prepared(self, inputs: Mapping[str, Tensor]) -> tuple[Sampler, TokenBatch, Plan]:
        """What `tokens` runs: a sampler on the model for this size, the batch, and the plan."""
        if not inputs or not self.targets:
            raise ConfigError("a chain needs inputs and targets")
        grid = self._grid(inputs)
        given = {key_of(name): value for name, value in inputs.items()}
        made = [key_of(name, "target") for name in self.targets]
        # a text that waits for its turn is in the encoder, as a lone sentinel; the last target not
        read = [*given, *(made[:-1] if self.visible else ())]
        model = narrowed(
            self.model,
            inputs=list(dict.fromkeys(read)),
            outputs=made,
            grids={
                name: grid
                for name in dict.fromkeys([*read, *made])
                if self.model.modality(name).kind != "sequence"
            },
        )
        batch = TokenBatch({n: self._given(n, v, model) for n, v in given.items()})
        targets = [self._target(name, model) for name in made]
        return Sampler(model), batch, Plan(tuple(targets))

    def _version(self, name: str) -> str:
        return self.options.version or self.model.modality(name).edition or "v1"

    def _target(self, name: str, model: FourM) -> Target:
        options = self.options
        drawn = {
            "temperature": options.temperature,
            "top_p": options.top_p or None,
            "top_k": options.top_k or None,
        }
        if model.modality(name).kind == "sequence":
            return Target(name, **drawn)  # type: ignore[arg-type]
        return Target(name, scheme="roar", steps=options.steps, order="linear", **drawn)  # type: ignore[arg-type]

    def _given(self, name: str, value: Tensor, model: FourM) -> Tokens:
        entry = model.modality(name)
        if entry.kind == "pixels":
            pixels = (
                standardized(value, name, self._version(name))
                if self.options.standardize
                else value
            )
            if pixels.shape[1] != entry.channels:
                raise ShapeError(f"'{name}' has {entry.channels} bands, got {list(pixels.shape)}")
            return Tokens.given(pixels, length=entry.max_tokens)
        ids = value.flatten(1)
        return Tokens.given(ids, length=ids.shape[1])

    def _grid(self, inputs: Mapping[str, Tensor]) -> Grid:
        """Rows and columns of tokens of the pictures that are given."""
        found: dict[str, Grid] = {}
        for name, value in inputs.items():
            entry = self.model.modality(key_of(name))
            if entry.kind == "pixels":
                patch = entry.patch_size or 1
                if value.ndim != 4 or value.shape[2] % patch or value.shape[3] % patch:
                    raise ShapeError(
                        f"'{name}' is float[B, C, H, W] with sides that are multiples of {patch}, "
                        f"got {list(value.shape)}"
                    )
                found[name] = value.shape[2] // patch, value.shape[3] // patch
            elif entry.kind == "grid":
                rows, columns = value.shape[1:] if value.ndim == 3 else square(value.shape[1], name)
                found[name] = int(rows), int(columns)
        if len(set(found.values())) > 1:
            raise ShapeError(f"pictures of one place have one grid of tokens, got {found}")
        return next(iter(found.values()), (14, 14))


def standardized(values: Tensor, name: str, version: str = "v1") -> Tensor:
    """Pixels float[B, C, H, W] less their mean, by their deviation; the argument is unchanged.

    Raises:
        ConfigError: no statistics are known
    """
    mean, std = _statistics(values, name, version)
    return (values - mean) / std


def restored(values: Tensor, name: str, version: str = "v1") -> Tensor:
    """The inverse of `standardized`; values without statistics stay as they are."""
    if name not in STATISTICS.get(version, {}):
        return values
    mean, std = _statistics(values, name, version)
    return values * std + mean


def _statistics(values: Tensor, name: str, version: str) -> tuple[Tensor, Tensor]:
    held = STATISTICS.get(version, {}).get(name)
    if held is None:
        raise ConfigError(f"no statistics of version {version!r} are known for '{name}'")
    mean, std = (values.new_tensor(part)[:, None, None] for part in (held.mean, held.std))
    return mean, std


class ThinkingViT(nn.Module):
    """A backbone that reads what a frozen model says of the picture first (TiM).

    Args:
        generator: the frozen chain
        backbone: reads the inputs and the generated tokens, under the chain's names
    """

    def __init__(self, generator: Chain, backbone: MergedViT) -> None:
        super().__init__()
        absent = [name for name in generator.targets if name not in backbone.names]
        if absent:
            raise ConfigError(f"the backbone does not read what is generated: {absent}")
        self.generator, self.backbone = generator, backbone

    def forward(self, inputs: Mapping[str, Tensor], *, seed: int = 0) -> list[Output]:
        """The output of every block over the inputs and what was generated from them."""
        with torch.no_grad():
            made = self.generator.maps(inputs, seed=seed)
        return self.backbone({**inputs, **made})
