"""One modality to generate, and what is chosen for it by kind and size. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

from fourm_lite.errors import ConfigError, check_choice, check_most, suggest
from fourm_lite.io.recipe import from_dict
from fourm_lite.modalities.spec import Modality
from fourm_lite.sampling.schedule import (
    MAX_STEPS,
    MAX_TOKENS,
    Order,
    Temperature,
    as_temperature,
    num_kept,
    share_kept,
    token_counts,
)

Scheme = Literal["maskgit", "roar", "autoregressive"]
"""The decoding schemes; their functions stand in `schemes`."""

Guidance = float | Mapping[str, float]
"""One scale for all conditions together, or a weight for each; 1.0 is no guidance."""

Amounts = Literal["words", "median"]
"""How amounts (`v0=117`) are chosen: as any other word, or at the median of what is expected."""

_OF_AMOUNTS = frozenset({"color_palette", "metadata"})  # formats whose v0 says how much; a place
# of a box or a pose may be expected in two spots with nothing between them

_SMALL_GRID = 16  # tokens of a global embedding: few enough for one step


@dataclass(frozen=True)
class Choice:
    """How a modality is decoded when the target does not say; without steps: token by token."""

    scheme: Scheme
    steps: int | None
    order: Order
    temperature: float
    amounts: Amounts = "words"


# A global embedding is one argmax step. Pictures need several steps to agree with themselves, and
# argmax makes them dull: MaskGIT and ROAR settings are those that their papers and 4M start from.
# Texts are best cool.
_OF_SCHEME: dict[str, Choice] = {
    "maskgit": Choice("maskgit", 8, "cosine", 1.0),
    "roar": Choice("roar", 25, "linear", 1.0),
    "autoregressive": Choice("autoregressive", None, "linear", 0.3),
}
_SMALL: dict[str, Choice] = {
    "maskgit": Choice("maskgit", 1, "cosine", 0.0),
    "roar": Choice("roar", 1, "linear", 0.0),
}


def default_choice(modality: Modality, scheme: Scheme | None = None) -> Choice:
    """How a modality is decoded by default.

    Raises:
        ConfigError: it is never a target, or the scheme does not fit its kind
    """
    if modality.scheme is None or not modality.is_target:
        raise ConfigError(
            f"'{modality.name}' ({modality.kind}) is never a target; only grids and sequences that "
            "have the direction 'out' can be generated"
        )
    usual = _OF_SCHEME[modality.scheme]
    fitting = [name for name, c in _OF_SCHEME.items() if (c.steps is None) == (usual.steps is None)]
    if scheme is not None and scheme not in fitting:
        raise ConfigError(
            f"'{modality.name}' is a {modality.kind} and decoded by {' or '.join(fitting)}, "
            f"not by {scheme}"
        )
    choice = usual if scheme is None else _OF_SCHEME[scheme]
    if choice.steps is not None and modality.max_tokens <= _SMALL_GRID:
        return _SMALL.get(scheme or "roar", choice)
    if choice.steps is None and modality.text_format in _OF_AMOUNTS:
        return replace(choice, amounts="median")
    return choice


@dataclass(frozen=True)
class Target:
    """One modality to generate; what is None is chosen by its kind and size.

    Args:
        modality: "tok_depth@224", "caption", ...
        scheme: "maskgit", "roar" (both in parallel) or "autoregressive" (sequences)
        steps: forward passes at most; steps that would reveal nothing are not run
        order: how many tokens come when: "cosine" (few first) or "linear"
        temperature: a number, a rule, or its text: "linear@2", "onex:0.5:0.5@6"; 0 is argmax
        guidance: one scale, or a weight for each condition
        top_k: an integer keeps that many ids, a float that share of the vocabulary; 0 is off
        top_p: keeps the likeliest ids that make up this share of the probability; 0 is off
        max_tokens: sequences: tokens at most
        copies: sequences: how often the item is sampled, the results joined (dense SAM)
        amounts: sequences: number words `v0=..` at the "median" of what is expected, or drawn
            as any other of the "words"; None: the median for palettes and metadata
    Raises:
        ConfigError: a value that means nothing
    """

    modality: str
    scheme: Scheme | None = None
    steps: int | None = None
    order: Order | None = None
    temperature: Temperature | float | str | None = None
    guidance: float | Mapping[str, float] = 1.0
    top_k: int | float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    copies: int = 1
    amounts: Amounts | None = None

    def __post_init__(self) -> None:
        """Refuses what no modality could make sense of."""
        if not self.modality or not isinstance(self.modality, str):
            raise ConfigError(f"a target needs the name of a modality, got {self.modality!r}")
        if self.scheme is not None:
            check_choice(f"'{self.modality}': scheme", self.scheme, of=_OF_SCHEME)
        for name in ("steps", "max_tokens", "copies"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ConfigError(f"'{self.modality}': {name} must be 1 or more, got {value!r}")
            check_most(MAX_STEPS if name != "max_tokens" else MAX_TOKENS, **{name: int(value)})
        if self.amounts not in (None, "words", "median"):
            raise ConfigError(
                f"'{self.modality}': amounts must be 'words' or 'median', got {self.amounts!r}"
            )
        if self.order is not None:
            token_counts(1, 1, self.order)
        if self.temperature is not None:
            as_temperature(self.temperature)
        num_kept(self.top_k, 1)
        share_kept(self.top_p)
        _check_guidance(self.modality, self.guidance)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """The target behind a table of plain values; see `io.recipe.from_dict`."""
        return from_dict(cls, data)


def _check_guidance(target: str, guidance: Guidance) -> None:
    weights = guidance if isinstance(guidance, Mapping) else {"all": guidance}
    for name, weight in weights.items():
        # not bool, and neither nan nor infinite
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight - weight != 0:
            raise ConfigError(
                f"'{target}': guidance is a number or a table of numbers, got {weight!r} for {name}"
            )
    if not weights:
        raise ConfigError(f"'{target}': guidance is an empty table; name a weight per condition")


def schedule(
    target: Target, entry: Modality, *, original: bool
) -> tuple[Sequence[int | None], list[float]]:
    """Tokens and temperature of every step of a target; the shorter list ends it."""
    choice = default_choice(entry, target.scheme)
    rule = as_temperature(choice.temperature if target.temperature is None else target.temperature)
    if choice.steps is None:
        _check_sequence(target, entry)
        return [None], [rule.start]
    _check_grid(target, entry)
    counts = token_counts(
        entry.max_tokens,
        target.steps or choice.steps,
        target.order or choice.order,
        original=original,
    )
    return counts, rule.at(counts)


def _check_sequence(target: Target, entry: Modality) -> None:
    for name in ("steps", "order"):
        if getattr(target, name) is not None:
            raise ConfigError(
                f"'{entry.name}' is a sequence and says one token after the other: leave out {name}"
            )
    if target.max_tokens is not None and target.max_tokens > entry.max_tokens:
        raise ConfigError(
            f"'{entry.name}' has at most {entry.max_tokens} tokens, got "
            f"max_tokens={target.max_tokens}"
        )


def _check_grid(target: Target, entry: Modality) -> None:
    if target.max_tokens is not None or target.copies != 1 or target.amounts is not None:
        raise ConfigError(
            f"'{entry.name}' is a grid of {entry.max_tokens} tokens: max_tokens, copies and "
            "amounts are for sequences"
        )


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a plan as it goes on.

    Args:
        named: the conditions that the plan names; None: all that are given
        given: the modalities of the inputs; None: not known
        grows: finished targets join the conditions
        original: autoregressive targets never join, and nothing is checked, as in 4M
    """

    named: tuple[str, ...] | None
    given: tuple[str, ...] | None
    grows: bool = False
    original: bool = False
    finished: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()

    def after(self, target: str, scheme: Scheme) -> Conditioning:
        """The same once a target is finished."""
        joins = self.grows and not (self.original and scheme == "autoregressive")
        return replace(
            self,
            finished=(*self.finished, target),
            grown=(*self.grown, target) if joins else self.grown,
        )

    def of(self, target: Target) -> tuple[Guidance, tuple[str, ...]]:
        """Guidance and conditions of the steps of a target.

        Raises:
            ConfigError: it is guided by what is not there, or it is not known what is there
        """
        if isinstance(target.guidance, Mapping):
            return self._weighted(target, target.guidance)
        conditions, scale = self._conditions(target), float(target.guidance)
        if scale != 1.0:
            self._check(target, conditions)
        # without a condition both passes are one, so the scale means nothing
        return (scale if conditions or self.original else 1.0), conditions

    def _weighted(
        self, target: Target, guidance: Mapping[str, float]
    ) -> tuple[Guidance, tuple[str, ...]]:
        weights = {name: float(weight) for name, weight in guidance.items()}
        weights |= {name: 1.0 for name in self.grown if name not in weights}
        self._check(target, weights)
        return weights, tuple(weights)

    def _conditions(self, target: Target) -> tuple[str, ...]:
        base = self.given if self.named is None else self.named
        if base is None and target.guidance != 1.0:
            raise ConfigError(
                f"'{target.modality}' is guided, but neither the plan names its conditions nor is "
                "it known what is given: pass given=... to steps()"
            )
        names = dict.fromkeys((*(base or ()), *self.grown))
        return tuple(n for n in names if self.original or n != target.modality)

    def _check(self, target: Target, names: Iterable[str]) -> None:
        if self.given is None or self.original:
            return
        there = (*self.given, *self.finished)
        for name in names:
            if name not in there:
                raise ConfigError(
                    f"'{target.modality}' is guided by {name!r}, which is neither given nor "
                    f"generated before it.{suggest(name, there)} There: {', '.join(there) or '-'}"
                )
