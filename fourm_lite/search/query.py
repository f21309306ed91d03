"""What a person asks for, and how it becomes one vector.

A query is wishes: values of modalities, each with a weight, some of them negative. Two ways:

- ``conditioning``: all positive values go into the model together, one forward pass, as one item;
  q = embed({caption, rgb, ...}). Negatives are taken off by the formula below.
- ``arithmetic``: every wish is embedded alone, q = unit(sum_i w_i unit(x_i) - sum_j v_j unit(y_j))
  (`retrieval.compose`). Weights and several wishes of one modality need this one.

A picture beside something else is composed by arithmetic unless it is said otherwise, the other
counting `BESIDE_PICTURE`: pixels tell a model so much that, in one pass, words are hardly heard
(tests/benchmarks/bench_compose.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fourm_lite.errors import ConfigError, suggest
from fourm_lite.retrieval.compose import compose
from fourm_lite.search.centre import Floats
from fourm_lite.search.spaces import PICTURE, Space, TwinSpace

Compose = Literal["conditioning", "arithmetic"]
COMPOSE: tuple[Compose, ...] = ("conditioning", "arithmetic")
NEGATIVE_WEIGHT = 0.5
"""How much a negative counts unless it is said; at 1 it would weigh as much as what is wanted."""

BESIDE_PICTURE = 1.5
"""How much words count beside a picture, where nothing is said: the answer has then gained more
than half of what the words alone would, and kept more than half of what the picture alone has."""


@dataclass(frozen=True)
class Wish:
    """One value of one modality; `weight` None is the usual one."""

    name: str
    value: Any
    weight: float | None = None
    negative: bool = False


@dataclass(frozen=True)
class Query:
    """Wishes and how they are put together; None chooses by what the wishes need."""

    wishes: tuple[Wish, ...]
    compose: Compose | None = None

    def __post_init__(self) -> None:
        if not self.wishes:
            raise ConfigError("nothing is asked for: give a caption, a picture or another modality")
        for wish in self.wishes:
            if isinstance(wish.value, str) and not wish.value.strip():
                raise ConfigError(f"'{wish.name}' is empty; say in words what is asked for")
        if self.compose is not None and self.compose not in COMPOSE:
            raise ConfigError(
                f"compose is one of {', '.join(COMPOSE)}, got {self.compose!r}."
                f"{suggest(self.compose, COMPOSE)}"
            )
        if self.compose == "conditioning" and self._needs_arithmetic:
            raise ConfigError(
                "one forward pass on everything has no weights and takes one value a modality; "
                "use compose='arithmetic'"
            )

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any] | None = None,
        *,
        without: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        compose: Compose | None = None,
        **more: Any,
    ) -> Query:
        """A query from plain values: `Query.of(caption="a dog", rgb="a.jpg")`.

        Args:
            given: modality -> value, or a list of values
            without: the same, for what is not wanted
            weights: modality -> weight; "not-caption" weighs what is not wanted
            compose: see the head of this file
            more: as `given`

        Raises:
            ConfigError: nothing is asked for, or a weight belongs to nothing
        """
        wishes = [(n, v, False) for n, v in _flat({**(given or {}), **more})]
        wishes += [(n, v, True) for n, v in _flat(without or {})]
        keys = {f"not-{n}" if negative else n for n, _, negative in wishes}
        for name in weights or {}:
            if name not in keys:
                raise ConfigError(
                    f"there is a weight for {name!r} and no such wish.{suggest(name, keys)}"
                )
        plain = weights or {}
        return cls(
            tuple(
                Wish(n, v, plain.get(f"not-{n}" if negative else n), negative)
                for n, v, negative in wishes
            ),
            compose,
        )

    @property
    def _needs_arithmetic(self) -> bool:
        wanted = [w for w in self.wishes if not w.negative]
        names = [w.name for w in wanted]
        return len(set(names)) < len(names) or any(w.weight is not None for w in wanted)

    @property
    def way(self) -> Compose:
        """How the wishes are put together."""
        if self.compose is not None:
            return self.compose
        return "arithmetic" if self._needs_arithmetic or self._has_picture else "conditioning"

    @property
    def _has_picture(self) -> bool:
        """Whether a picture is wanted together with something else."""
        pictures = [_is_picture(w) for w in self.wishes if not w.negative]
        return any(pictures) and not all(pictures)

    @property
    def _weights(self) -> list[float]:
        """Of what is wanted."""
        plain = self.compose is None and self._has_picture and not self._needs_arithmetic
        usual = {True: 1.0, False: BESIDE_PICTURE if plain else 1.0}
        wanted = [w for w in self.wishes if not w.negative]
        return [usual[_is_picture(w)] if w.weight is None else w.weight for w in wanted]

    @property
    def item(self) -> dict[str, Any]:
        """What is wanted, as one item: of several values of a modality the first."""
        out: dict[str, Any] = {}
        for wish in self.wishes:
            if not wish.negative:
                out.setdefault(wish.name, wish.value)
        return out

    @property
    def title(self) -> str:
        """The query in words."""
        return ", ".join(_words(w) for w in self.wishes)

    def vector(self, space: Space) -> Floats:
        """The unit vector float32[E] to search by.

        Raises:
            FourMError: a value is not of its modality, or the wishes cancel out
        """
        wanted = [w for w in self.wishes if not w.negative]
        unwanted = [w for w in self.wishes if w.negative]
        twin = isinstance(space, TwinSpace) and self.compose is None
        one_each = twin or self.way == "arithmetic"
        items = [{w.name: w.value} for w in wanted] if one_each else [self.item] * bool(wanted)
        if not unwanted and len(items) == 1:
            return space.embed_items(items)[0]
        vectors = space.embed_items([*items, *({w.name: w.value} for w in unwanted)])
        return compose(
            vectors[: len(items)],
            self._weights if one_each else None,
            negatives=vectors[len(items) :],
            negative_weights=[NEGATIVE_WEIGHT if w.weight is None else w.weight for w in unwanted],
        )


def _flat(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Lists of texts, paths and pictures as several wishes; a list of numbers is one value."""
    out: list[tuple[str, Any]] = []
    for name, value in given.items():
        many = isinstance(value, list | tuple) and not _is_numbers(value)
        out += [(name, one) for one in (value if many else [value])]
    return out


def _is_picture(wish: Wish) -> bool:
    return wish.name.partition("@")[0] == PICTURE


def _is_numbers(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(v, int | float | list | tuple) for v in value)


def _words(wish: Wish) -> str:
    sign = "not " if wish.negative else ""
    value = str(wish.value) if isinstance(wish.value, str) or _is_path(wish.value) else "(given)"
    weight = "" if wish.weight is None else f" x {wish.weight:g}"
    return f"{sign}{wish.name}: {value}{weight}"


def _is_path(value: Any) -> bool:
    return hasattr(value, "__fspath__")
