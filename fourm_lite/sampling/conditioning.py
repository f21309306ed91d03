"""What guidance strengthens when the turn of a target comes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fourm_lite.errors import ConfigError, suggest
from fourm_lite.modalities.spec import Scheme
from fourm_lite.sampling.target import Guidance, Target


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
