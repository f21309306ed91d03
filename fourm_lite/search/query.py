"""What a person asks for, and how it becomes one vector.

A query is made of terms: values of modalities, each with a weight, some of them negative. Two ways:

- ``conditioning``: all positive values go into the model together, one forward pass, as one item;
  q = embed({caption, rgb, ...}). Negatives are taken off by the formula below.
- ``arithmetic``: every term is embedded alone, q = unit(sum_i w_i unit(x_i) - sum_j v_j unit(y_j))
  (`search.query`). Weights and several terms of one modality need this one.

A picture beside something else is composed by arithmetic unless it is said otherwise, the other
counting `BESIDE_PICTURE`: pixels tell a model so much that, in one pass, words are hardly heard
(tests/benchmarks/bench_compose.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.modalities.plain_items import as_item, known_name
from fourm_lite.search.index.exact import unit_vectors
from fourm_lite.search.space import PICTURE, Space
from fourm_lite.unit import Floats, unit_doubles

Compose = Literal["conditioning", "arithmetic"]
COMPOSE: tuple[Compose, ...] = ("conditioning", "arithmetic")
NEGATIVE_WEIGHT = 0.5
"""The default weight of a negative; at 1 it would weigh as much as what is wanted."""

BESIDE_PICTURE = 1.5
"""How much words count beside a picture, where nothing is said: the answer has then gained more
than half of what the words alone would, and kept more than half of what the picture alone has."""

ROW = "row"
"""The name of a term whose value is a vector float32[E] of the space: more like this row."""


@dataclass(frozen=True)
class QueryTerm:
    """One value of one modality; `weight` None is the usual one."""

    name: str
    value: Any
    weight: float | None = None
    negative: bool = False


@dataclass(frozen=True)
class Query:
    """Terms and how they are put together; None chooses by what the terms need."""

    terms: tuple[QueryTerm, ...]
    compose: Compose | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("nothing is asked for: give a caption, a picture or another modality")
        for term in self.terms:
            if isinstance(term.value, str) and not term.value.strip():
                raise ConfigError(f"'{term.name}' is empty; say in words what is asked for")
        if self.compose is not None:
            check_choice("compose", self.compose, of=COMPOSE)
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
            given: modality -> value, or a list of values; "text" and "image" are names too
            without: the same, for what is not wanted
            weights: modality -> weight; "not-caption" weighs what is not wanted
            compose: see the head of this file
            more: as `given`

        Raises:
            ConfigError: nothing is asked for, or a weight belongs to nothing
        """
        terms = [(n, v, False) for n, v in _flat(as_item({**(given or {}), **more}))]
        terms += [(n, v, True) for n, v in _flat(as_item(without or {}))]
        keys = {f"not-{n}" if negative else n for n, _, negative in terms}
        plain = {_weighed(name): weight for name, weight in (weights or {}).items()}
        check_choice("what is weighed", *plain, of=sorted(keys))
        return cls(
            tuple(
                QueryTerm(n, v, plain.get(f"not-{n}" if negative else n), negative)
                for n, v, negative in terms
            ),
            compose,
        )

    @property
    def _needs_arithmetic(self) -> bool:
        wanted = [w for w in self.terms if not w.negative]
        names = [w.name for w in wanted]
        return len(set(names)) < len(names) or any(w.weight is not None for w in wanted)

    @property
    def way(self) -> Compose:
        """How the terms are put together."""
        if self.compose is not None:
            return self.compose
        return "arithmetic" if self._needs_arithmetic or self._has_picture else "conditioning"

    @property
    def has_row(self) -> bool:
        """Whether a row of the index is among the terms."""
        return any(w.name == ROW for w in self.terms)

    @property
    def _has_picture(self) -> bool:
        """Whether a picture is wanted together with something else."""
        pictures = [_is_picture(w) for w in self.terms if not w.negative]
        return any(pictures) and not all(pictures)

    @property
    def _weights(self) -> list[float]:
        """Of what is wanted."""
        plain = self.compose is None and self._has_picture and not self._needs_arithmetic
        usual = {True: 1.0, False: BESIDE_PICTURE if plain else 1.0}
        wanted = [w for w in self.terms if not w.negative]
        return [usual[_is_picture(w)] if w.weight is None else w.weight for w in wanted]

    @property
    def item(self) -> dict[str, Any]:
        """What is wanted, as one item: of several values of a modality the first, of rows none."""
        out: dict[str, Any] = {}
        for term in self.terms:
            if not term.negative and term.name != ROW:
                out.setdefault(term.name, term.value)
        return out

    @property
    def title(self) -> str:
        """The query in words."""
        return ", ".join(_words(w) for w in self.terms)

    def vector(self, space: Space) -> Floats:
        """The unit vector float32[E] to search by.

        Raises:
            FourMError: a value is not of its modality, or the terms cancel out
        """
        return query_vectors([self], space)[0]

    def items(self, space: Space) -> list[dict[str, Any]]:
        """What is embedded, an item a vector: what is wanted first, then what is not."""
        wanted = [w for w in self.terms if not w.negative]
        alone = [{w.name: w.value} for w in self.terms if w.negative]
        if self._one_each(space):
            return [*({w.name: w.value} for w in wanted), *alone]
        return [self.item] * bool(wanted) + alone

    def composed(self, vectors: Floats, space: Space) -> Floats:
        """The vector of the query from those of its `items`.

        Shapes:
            vectors: float32[items, E]
        """
        unwanted = [w for w in self.terms if w.negative]
        if not unwanted and len(vectors) == 1:
            return vectors[0]
        count = len(vectors) - len(unwanted)
        return compose(
            vectors[:count],
            self._weights if self._one_each(space) else None,
            negatives=vectors[count:],
            negative_weights=[NEGATIVE_WEIGHT if w.weight is None else w.weight for w in unwanted],
        )

    def _one_each(self, space: Space) -> bool:
        apart = not space.joins and self.compose is None
        return apart or self.way == "arithmetic" or self.has_row


def asked_for(
    query: Query | Mapping[str, Any] | str | Path | None, given: Mapping[str, Any]
) -> Query:
    """The query of a call `search(query, **given)`.

    Raises:
        ConfigError: nothing is asked for, or in a way that `Query.of` or an index understands
    """
    _refuse_other_doors(given)
    if isinstance(query, Query):
        if given:
            raise ConfigError(f"a Query is whole, put {', '.join(given)} into it: {BY_QUERY}")
        return query
    if _is_vector(query):
        raise ConfigError(
            f"a query is a sentence, a photo or a dict of modalities, got numbers of shape "
            f"{list(np.shape(query))}; by a vector of your own, made in the index's space, search "
            "with Index.open('IDX').search(vector), and a file of vectors with open_vectors"
        )
    return Query.of({**as_item(query or {}), **given})


def _refuse_other_doors(given: Mapping[str, Any]) -> None:
    """What the command line, the server or `Query.of` take is told in the words of `search`."""
    for name in given:
        if name in ("without", "compose") or name.startswith(("not_", "not-")):
            raise ConfigError(f"{name!r} is no modality: {BY_QUERY}")
    if "like" in given:
        raise ConfigError(
            "more like a row is asked for by its vector: "
            "search(Query.of(row=search.index.vectors([ID])[0]))"
        )


BY_QUERY = (
    "what is not wanted, and weights of what is asked for, stand in a query: search(Query.of("
    "caption='a hill', without={'caption': 'snow'}, weights={'not-caption': 0.5}))"
)


def _is_vector(query: Any) -> TypeGuard[npt.NDArray[Any]]:
    """Whether it is numbers that are no picture."""
    if isinstance(query, list | tuple):
        return _is_numbers(query)
    return hasattr(query, "shape") and len(query.shape) < 3


def _weighed(name: str) -> str:
    """The term's name of what is weighed: "not-text" is "not-caption"."""
    plain = name.removeprefix("not-")
    return ("" if plain == name else "not-") + known_name(plain)


def query_vectors(queries: Sequence[Query], space: Space) -> list[Floats]:
    """The vector of each query; items of one make are embedded together.

    Raises:
        FourMError: a value is not of its modality, or the terms of a query cancel out
    """
    items = [query.items(space) for query in queries]
    flat = [item for own in items for item in own]
    made: dict[tuple[str, ...], list[int]] = {}
    for place, item in enumerate(flat):
        made.setdefault(tuple(sorted(item)), []).append(place)
    vectors = np.empty((len(flat), space.width), np.float32)
    for names, places in made.items():
        if names == (ROW,):
            vectors[places] = unit_vectors(
                np.stack([flat[i][ROW] for i in places]), len(places), space.width
            )
        else:
            vectors[places] = space.encode_query([flat[i] for i in places])
    parts = np.split(vectors, np.cumsum([len(own) for own in items])[:-1])
    return [q.composed(own, space) for q, own in zip(queries, parts, strict=True)]


def _flat(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Lists of texts, paths and pictures as several terms; a list of numbers is one value."""
    out: list[tuple[str, Any]] = []
    for name, value in given.items():
        many = isinstance(value, list | tuple) and not _is_numbers(value)
        out += [(name, one) for one in (value if many else [value])]
    return out


def _is_picture(term: QueryTerm) -> bool:
    return term.name == ROW or term.name.partition("@")[0] == PICTURE


def _is_numbers(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(v, int | float | list | tuple) for v in value)


def _words(term: QueryTerm) -> str:
    sign = "not " if term.negative else ""
    value = str(term.value) if isinstance(term.value, str) or _is_path(term.value) else "(given)"
    weight = "" if term.weight is None else f" x {term.weight:g}"
    return f"{sign}{term.name}: {value}{weight}"


def _is_path(value: Any) -> bool:
    return hasattr(value, "__fspath__")


SMALLEST = 1e-6
"""A sum shorter than this, relative to its weights, has no direction worth searching."""


def compose(
    vectors: Any,
    weights: Sequence[float] | None = None,
    *,
    negatives: Any = None,
    negative_weights: Sequence[float] | None = None,
) -> Floats:
    """The query vector of several terms, by the formula at the head of this file.

    Shapes:
        vectors: float[N, E], N may be 0 if there are negatives
        weights: N numbers of at least 0, 1 each if not given
        negatives: float[M, E], with their own weights
        returns: float32[E], unit length
    Raises:
        ConfigError: a negative weight, nothing to compose, or terms that cancel out
        ShapeError: widths or counts differ

    >>> compose([[1.0, 0.0], [0.0, 1.0]], [3, 4]).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    parts = [_signed(vectors, weights, 1.0), _signed(negatives, negative_weights, -1.0)]
    given = [part for part in parts if part is not None]
    if not given:
        raise ConfigError("there is nothing to compose; give at least one vector")
    if len({part[0].shape[1] for part in given}) > 1:
        raise ShapeError(f"vectors and negatives differ in width: {[p[0].shape[1] for p in given]}")
    units = np.concatenate([part[0] for part in given]).astype(np.float64)
    signed = np.concatenate([part[1] for part in given])
    total = signed @ units
    length = float(np.linalg.norm(total))
    if length <= SMALLEST * float(np.abs(signed).sum()):
        raise ConfigError(
            "the weighted vectors cancel out and leave no direction; change a weight or drop one"
        )
    return (total / length).astype(np.float32)


def _signed(
    vectors: Any, weights: Sequence[float] | None, sign: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Unit vectors in double precision with signed weights; ``None`` where there are none."""
    if vectors is None or not len(vectors):
        if weights is not None and len(weights):
            raise ShapeError(f"{len(weights)} weights came without vectors")
        return None
    array = np.asarray(vectors, np.float64)
    array = array[None] if array.ndim == 1 else array
    unit_vectors(array, None, None)  # refuses what has no direction
    units = unit_doubles(array)
    given = np.ones(len(units)) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (len(units),):
        raise ShapeError(f"{len(units)} vectors came with weights of shape {list(given.shape)}")
    if not np.isfinite(given).all() or (given < 0).any():
        raise ConfigError(
            f"weights are finite and at least 0, got {given.tolist()}; "
            "put what you do not want into negatives"
        )
    return units, sign * given
