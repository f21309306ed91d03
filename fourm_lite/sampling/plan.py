"""What to generate, in which order and how: the plan of some targets, and its steps.

A plan is a value that can be printed, read from TOML and carried out by any model that has its
modalities. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, UnknownNameError, suggest
from fourm_lite.io.hub import assets
from fourm_lite.io.recipe import from_dict, from_toml
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.sampling.target import (
    Amounts,
    Conditioning,
    Guidance,
    Scheme,
    Target,
    default_choice,
    schedule,
)

__all__ = ["Plan", "Step", "Target"]


@dataclass(frozen=True)
class Step:
    """One forward pass of a parallel target, or the whole of a sequence.

    Args:
        num_tokens: how many it reveals; None for a sequence
        guidance: one scale (1.0: none), or a weight per condition
        conditions: what guidance strengthens: its unconditional pass does not see them
        index: number of the step in the plan, from 0; the seed of a step is derived from it
        first, last: whether it begins or ends its target
    """

    target: str
    scheme: Scheme
    num_tokens: int | None
    temperature: float
    guidance: Guidance = 1.0
    conditions: tuple[str, ...] = ()
    top_k: int | float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    copies: int = 1
    amounts: Amounts = "words"
    index: int = 0
    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class Plan:
    """Targets, in the order in which they are generated; each sees those before it.

    Args:
        targets: at least one, each modality once
        grow_conditioning: guidance also strengthens the targets that are finished
        conditions: the inputs that guidance strengthens; None: all that are given
    Raises:
        ConfigError: no target, or one twice
    """

    targets: tuple[Target, ...]
    grow_conditioning: bool = False
    conditions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses a plan without targets or with one twice."""
        names = self.names
        if not names:
            raise ConfigError("a plan needs at least one target, got none")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"a plan generates a modality once, it names {twice} again")

    @property
    def names(self) -> list[str]:
        """The modalities that it generates, in order."""
        return [target.modality for target in self.targets]

    @classmethod
    def of(
        cls,
        *targets: Target | str,
        grow_conditioning: bool = False,
        conditions: Iterable[str] | None = None,
    ) -> Plan:
        """The plan of some targets; a name alone stands for a target with all defaults."""
        return cls(
            tuple(Target(t) if isinstance(t, str) else t for t in targets),
            grow_conditioning=grow_conditioning,
            conditions=None if conditions is None else tuple(conditions),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan behind a table of plain values.

        Raises:
            ConfigError: an unknown key, with the nearest known one, or a value of the wrong type
        """
        return from_dict(cls, data)

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """The plan in a TOML file; a shipped one by its name alone ("rgb2all").

        Raises:
            ConfigError: no such file, or as `from_dict`
        """
        return from_toml(cls, _plan_file(path))

    def steps(
        self,
        modalities: Mapping[str, Modality] = MODALITIES,
        given: Iterable[str] | None = None,
        *,
        original: bool = False,
    ) -> tuple[Step, ...]:
        """Every step in order.

        Args:
            modalities: the entries of the model (`model.config.modalities`); they say how many
                tokens a target has
            given: the modalities of the inputs; needed where a target is guided and the plan
                does not name its conditions
            original: token counts with empty steps, and autoregressive targets never become
                conditions, as in 4M
        Raises:
            ConfigError: a target that the modalities cannot be, or guidance by what is not there
        """
        known = None if given is None else tuple(given)
        rules = Conditioning(self.conditions, known, self.grow_conditioning, original)
        steps: list[Step] = []
        for target in self.targets:
            entry = _entry(modalities, target.modality)
            steps += _steps_of(target, entry, rules, start=len(steps), original=original)
            rules = rules.after(target.modality, default_choice(entry, target.scheme).scheme)
        return tuple(steps)

    def table(self, modalities: Mapping[str, Modality] = MODALITIES) -> str:
        """The plan as a table for people: a row a target."""
        head = ("#", "target", "scheme", "tokens of each step", "temperature", "guidance", "cut")
        rows = [(str(i + 1), *_row(t, modalities)) for i, t in enumerate(self.targets)]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [_line(row, widths) for row in (head, tuple("-" * w for w in widths), *rows)]
        named = "all inputs" if self.conditions is None else ", ".join(self.conditions)
        grown = " and finished targets" if self.grow_conditioning else ""
        return "\n".join([*lines, f"guided by: {named}{grown}"])

    def __str__(self) -> str:
        return self.table()

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)


def shipped_plans() -> list[str]:
    """The names of the plans that ship."""
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def _shipped() -> Path:
    return assets() / "generation" / "plans"


def _plan_file(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if place.exists() or place.suffix or len(place.parts) != 1:
        return place
    shipped = _shipped() / f"{place}.toml"
    if shipped.is_file():
        return shipped
    names = shipped_plans()
    raise ConfigError(
        f"no file and no shipped plan is called {str(place)!r}.{suggest(str(place), names)} "
        f"Shipped plans: {', '.join(names) or 'none'}"
    )


def _entry(modalities: Mapping[str, Modality], name: str) -> Modality:
    if name not in modalities:
        raise UnknownNameError(
            f"the plan's target {name!r} is not a modality here.{suggest(name, modalities)} "
            f"Known: {', '.join(n for n, m in modalities.items() if m.is_target)}. "
            "The plans that ship are for the published models"
        )
    return modalities[name]


def _steps_of(
    target: Target, entry: Modality, rules: Conditioning, *, start: int, original: bool
) -> list[Step]:
    guidance, conditions = rules.of(target)
    counts, temperatures = schedule(target, entry, original=original)
    choice = default_choice(entry, target.scheme)
    amounts = "words" if original else choice.amounts
    return [
        Step(
            target=target.modality,
            scheme=choice.scheme,
            num_tokens=count,
            temperature=temperature,
            guidance=guidance,
            conditions=conditions,
            top_k=target.top_k,
            top_p=target.top_p,
            max_tokens=target.max_tokens,
            copies=target.copies,
            amounts=target.amounts or amounts,
            index=start + i,
            first=i == 0,
            last=i == min(len(counts), len(temperatures)) - 1,
        )
        for i, (count, temperature) in enumerate(zip(counts, temperatures, strict=False))
    ]


def _row(target: Target, modalities: Mapping[str, Modality]) -> tuple[str, ...]:
    if target.modality in modalities:
        entry = modalities[target.modality]
        counts, temperatures = schedule(target, entry, original=False)
        scheme: str = default_choice(entry, target.scheme).scheme
        tokens, heat = _counts_text(counts, target, entry), _range_text(temperatures)
    else:
        scheme, tokens, heat = target.scheme or "?", "? (not registered)", str(target.temperature)
    cuts = [f"{k}={v:g}" for k, v in (("k", target.top_k), ("p", target.top_p)) if v]
    return target.modality, scheme, tokens, heat, _guidance_text(target.guidance), " ".join(cuts)


def _counts_text(counts: Sequence[int | None], target: Target, entry: Modality) -> str:
    numbers = [str(count) for count in counts]
    if numbers == ["None"]:
        copies = f"{target.copies} x " if target.copies > 1 else ""
        return f"{copies}up to {target.max_tokens or entry.max_tokens}"
    if len(numbers) > 8:
        return f"{' '.join(numbers[:4])} .. {numbers[-1]} ({len(numbers)} steps)"
    return " ".join(numbers)


def _range_text(temperatures: Sequence[float]) -> str:
    first, last = f"{temperatures[0]:.3g}", f"{temperatures[-1]:.3g}"
    return first if first == last else f"{first} .. {last}"


def _guidance_text(guidance: Guidance) -> str:
    if isinstance(guidance, Mapping):
        return ", ".join(f"{name} {weight:g}" for name, weight in guidance.items())
    return "-" if guidance == 1.0 else f"{guidance:g}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
