"""How many tokens each step of parallel decoding reveals, and how hot it samples: plain numbers.

Unusual: the original 4M schedules contain steps that reveal nothing, and some end on a negative
count. Ours hold positive counts only and still sum to the total; `original=True` gives the others
for comparison. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral, Real
from typing import Literal, Protocol

from fourm_lite.errors import ConfigError, check_choice, check_most, suggest

Order = Literal["cosine", "linear"]
ORDERS: tuple[Order, ...] = ("cosine", "linear")

MAX_STEPS, MAX_TOKENS = 10_000, 1 << 24
FLOOR = 1e-9  # what 4M clips a falling temperature to; not 0, which would mean argmax
_ONEX_END = 100.0  # the "1/x" curve runs over x = 1 .. 100, one point a token


def token_counts(
    total: int, steps: int, order: Order = "cosine", *, original: bool = False
) -> list[int]:
    """Tokens revealed at each step, summing to `total`.

    A step that would reveal nothing is left out, so there may be fewer than `steps` of them.
    With `original` the list is that of 4M: cosine lists hold zeros, and where rounding gave away
    too much, a last count below zero.

    >>> token_counts(196, 8)
    [7, 21, 32, 38, 38, 32, 21, 7]
    >>> token_counts(16, 8), token_counts(16, 8, original=True)
    ([1, 2, 3, 3, 3, 2, 2], [1, 2, 3, 3, 3, 3, 2, -1])

    Raises:
        ConfigError: a negative total, fewer than one step, or an unknown order
    Source:
        MaskGIT (Chang et al. 2022), section 3.3: few tokens first, while little is known
    """
    check_choice("order", order, of=ORDERS)
    check_most(MAX_TOKENS, total=total)
    check_most(MAX_STEPS, steps=steps)
    if total < 0 or steps < 1:
        raise ConfigError(f"a schedule needs total >= 0 and steps >= 1, got {total} and {steps}")
    if order == "linear":
        return _linear(total, steps)
    counts = _cosine(total, steps)
    return counts if original else _positive(counts)


def _linear(total: int, steps: int) -> list[int]:
    edges = [i * total // steps for i in range(steps + 1)]
    counts = [after - before for before, after in pairwise(edges)]
    return sorted((c for c in counts if c), reverse=True)


def _cosine(total: int, steps: int) -> list[int]:
    left = [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)]
    counts = [round(total * (a - b)) for a, b in pairwise(left)]
    return [*counts, total - sum(counts)]


def _positive(counts: Sequence[int]) -> list[int]:
    kept = [c for c in counts if c > 0]
    excess = sum(kept) - sum(counts)
    for _ in range(excess):  # take it back one by one from the last of the largest steps
        largest = max(range(len(kept)), key=lambda i: (kept[i], i))
        kept[largest] -= 1
    return [c for c in kept if c]


def remaining_counts(counts: Sequence[int], done: int) -> list[int]:
    """What is left of a schedule when `done` tokens are there already.

    >>> remaining_counts([7, 21, 32, 38], 20)
    [8, 32, 38]
    """
    ends = list(accumulate(counts))
    rest = [count for count, end in zip(counts, ends, strict=True) if end > done]
    if rest:
        rest[0] = next(end for end in ends if end > done) - done
    return rest


class Temperature(Protocol):
    """A rule for the sampling temperature of every step of a target."""

    @property
    def start(self) -> float:
        """The temperature before the first token."""
        ...

    def at(self, counts: Sequence[int]) -> list[float]:
        """The temperature of every step of a schedule that reveals `counts`."""
        ...


@dataclass(frozen=True)
class Constant:
    """One temperature for all steps; 0 means argmax."""

    start: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a temperature that is not a number >= 0."""
        _check_start(self.start)

    def at(self, counts: Sequence[int]) -> list[float]:
        """`start`, once a step."""
        return [self.start] * len(counts)

    def __str__(self) -> str:
        return f"{self.start:g}"


@dataclass(frozen=True)
class Linear:
    """Falls with the share of tokens that is still missing *before* the step."""

    start: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a temperature that is not a number >= 0."""
        _check_start(self.start)

    def at(self, counts: Sequence[int]) -> list[float]:
        """`start` at the first step, near zero at the last."""
        total = max(sum(counts), 1)
        before = accumulate(counts, initial=0)
        return [
            max(self.start * (total - done) / total, FLOOR)
            for done, _ in zip(before, counts, strict=False)
        ]

    def __str__(self) -> str:
        return f"linear@{self.start:g}"


@dataclass(frozen=True)
class OneOverX:
    """Falls from `start` to `minimum`: x^-power times the share still missing after the step."""

    minimum: float = 0.5
    power: float = 0.5
    start: float = 1.0

    def __post_init__(self) -> None:
        """Refuses numbers that give no falling curve."""
        _check_start(self.start)
        if not (self.minimum >= 0 and self.power > 0) or math.isinf(self.minimum + self.power):
            raise ConfigError(
                f"onex:MINIMUM:POWER needs a minimum >= 0 and a power > 0, got {self.minimum} and "
                f"{self.power}"
            )

    def at(self, counts: Sequence[int]) -> list[float]:
        """The temperature of every step.

        4M computes the curve once a token but reads it by the number of the *step*, so it falls by
        a few points only; kept, because its published settings were tuned with it. For the same
        reason there are never more values than tokens.
        """
        total = sum(counts)
        done = list(accumulate(counts))[: max(total, 0)]
        return [self._value(step, 1 - d / total, total) for step, d in enumerate(done)]

    def _value(self, step: int, missing: float, total: int) -> float:
        x = 1 + (_ONEX_END - 1) * step / max(total - 1, 1)
        lowest = _ONEX_END**-self.power
        curve = (x**-self.power - lowest) / (1 - lowest)
        return max(self.minimum + (self.start - self.minimum) * missing * curve, FLOOR)

    def __str__(self) -> str:
        return f"onex:{self.minimum:g}:{self.power:g}@{self.start:g}"


def _check_start(start: float) -> None:
    if not start >= 0 or math.isinf(start):
        raise ConfigError(f"a temperature must be a number >= 0, got {start}")


_RULES: dict[str, tuple[Callable[..., Temperature], int]] = {
    "constant": (Constant, 0),
    "linear": (Linear, 0),
    "onex": (OneOverX, 2),
}


def parse_temperature(text: str) -> Temperature:
    """The rule behind a number or ``RULE[:MINIMUM:POWER][@START]``; START is 1 when left out.

    >>> parse_temperature("0.7"), parse_temperature("linear@2")
    (Constant(start=0.7), Linear(start=2.0))
    >>> parse_temperature("onex:0.5:0.5@6")
    OneOverX(minimum=0.5, power=0.5, start=6.0)

    Raises:
        ConfigError: the text is none of these
    """
    rule, _, start = text.strip().partition("@")
    name, *numbers = rule.split(":")
    try:
        if name not in _RULES:
            return Constant(float(text))
        make, at_most = _RULES[name]
        values = [float(number) for number in numbers]
        first = float(start) if "@" in text else 1.0
    except ValueError:
        raise ConfigError(_not_a_temperature(text, name)) from None
    if len(values) > at_most:
        raise ConfigError(_not_a_temperature(text, name))
    return make(*values, start=first)


def _not_a_temperature(text: str, name: str) -> str:
    return (
        "a temperature is a number, 'constant@START', 'linear@START' or "
        f"'onex:MINIMUM:POWER@START', got {text!r}.{suggest(name, _RULES)}"
    )


def as_temperature(value: Temperature | float | str) -> Temperature:
    """The rule itself, or the one that a number or a text stands for.

    Raises:
        ConfigError: a text or a type that stands for none
    """
    if isinstance(value, str):
        return parse_temperature(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Constant(float(value))
    if isinstance(value, bool) or not hasattr(value, "at"):
        raise ConfigError(
            f"a temperature is a number, a text or a rule, got {type(value).__name__}"
        )
    return value


def num_kept(top_k: float | None, vocab_size: int) -> int | None:
    """How many ids `top_k` keeps; None when it keeps them all.

    >>> num_kept(50, 8192), num_kept(0.25, 8192), num_kept(1e-9, 8192), num_kept(0, 8192)
    (50, 2048, 1, None)

    Raises:
        ConfigError: a negative number, a share above 1, or no number
    """
    if top_k is None:
        return None
    if isinstance(top_k, bool) or not isinstance(top_k, Real) or not top_k >= 0:
        raise ConfigError(f"top_k must be a number >= 0 or None, got {top_k!r}")
    if isinstance(top_k, Integral):
        kept = int(top_k)
    elif top_k > 1:
        raise ConfigError(
            f"a float top_k is a share of the vocabulary in (0, 1], got {top_k!r}; "
            f"to keep {top_k:g} ids give an integer"
        )
    else:
        kept = max(int(top_k * vocab_size), 1) if top_k else 0
    return kept if 0 < kept < vocab_size else None


def share_kept(top_p: float | None) -> float | None:
    """The share of the probability that `top_p` keeps; None when it keeps everything.

    >>> share_kept(0.9), share_kept(0.0), share_kept(1)
    (0.9, None, None)

    Raises:
        ConfigError: no number between 0 and 1
    """
    if top_p is None:
        return None
    if isinstance(top_p, bool) or not isinstance(top_p, Real) or not 0 <= top_p <= 1:
        raise ConfigError(f"top_p must be a share between 0 and 1 or None, got {top_p!r}")
    return float(top_p) if 0 < top_p < 1 else None
