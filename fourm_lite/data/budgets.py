"""How many tokens each modality of a training sample gives and is asked for.

A mixture holds one Dirichlet weight a modality; what rounding leaves over is dealt out one by one.

Source:
    4M (Mizrahi et al. 2023), section 2.2 and appendix A; MultiMAE (Bachmann et al. 2022)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fourm_lite.errors import ConfigError
from fourm_lite.tokenization.randomness import RandomSource
from fourm_lite.tokenization.spans import KeepScheme


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How the budgets of a sample are shared.

    Units:
        inputs, targets: modality -> Dirichlet weight; one that is absent or 0 gets nothing
        weight: how often this mixture is drawn among several
        keep: modality -> how large a part of a sequence is kept; the default is "random"
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    weight: float = 1.0
    keep: Mapping[str, KeepScheme] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses negative weights."""
        for name, alpha in (*self.inputs.items(), *self.targets.items(), ("weight", self.weight)):
            if not 0 <= alpha < float("inf"):
                raise ConfigError(f"mixture weights are finite and >= 0, got {name} = {alpha}")


@dataclass(frozen=True)
class Budget:
    """Tokens of one sample, drawn evenly from low..high."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuses a range that holds nothing."""
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"a token budget needs 0 <= low <= high, got {self.low}..{self.high}")

    def draw(self, source: RandomSource) -> int:
        """One number of the range."""
        if self.low == self.high:
            return self.low
        return self.low + source.below(self.high - self.low + 1)


def draw_mixture(mixtures: Sequence[Mixture], source: RandomSource) -> Mixture:
    """One mixture, as often as its weight says."""
    total = sum(mixture.weight for mixture in mixtures)
    if not mixtures or total <= 0:
        raise ConfigError("give at least one mixture with a positive weight")
    if len(mixtures) == 1:
        return mixtures[0]
    place = source.uniform() * total
    for mixture in mixtures:
        place -= mixture.weight
        if place < 0:
            return mixture
    return mixtures[-1]


def token_budgets(
    alphas: Sequence[float], limits: Sequence[int], total: int, source: RandomSource
) -> list[int]:
    """A budget dealt out by Dirichlet shares, rounded down, and cut to each one's limit.

    What rounding leaves over is dealt out one by one, each to the largest share of a further draw.
    What a limit cuts off is not dealt out again, so fewer tokens than `total` may come out.
    """
    shares = source.dirichlet(alphas)
    counts = [int(share * total) for share in shares]
    if any(alpha > 0 for alpha in alphas):
        for _ in range(total - sum(counts)):
            further = source.dirichlet(alphas)
            counts[further.index(max(further))] += 1
    return [min(count, limit) for count, limit in zip(counts, limits, strict=True)]
