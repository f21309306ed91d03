"""Recipes: TOML files as frozen dataclasses.

The dataclass is the schema: its fields are the keys, its types are checked, its defaults are the
only defaults. An unknown key is refused with the nearest one suggested; errors tell where in the
file they are ("optim.lr"). A file may name another as its `base` and say only what differs.
"""

from __future__ import annotations

import math
import os
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import reduce
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from fourm_lite.errors import ConfigError, ReadError, suggest
from fourm_lite.reading.regular import open_regular

T = TypeVar("T")
MAX_BYTES = 4 << 20
MAX_INTEGER = 1 << 53  # a float holds all below it


class Recipe:
    """A dataclass that is read from a TOML file."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The recipe of a file; as `from_toml`."""
        return from_toml(cls, path)


def from_toml(cls: type[T], path: str | Path) -> T:
    """The recipe in a TOML file and its bases.

    Raises:
        ConfigError: the file is missing or no TOML, or see `from_dict` and `read_toml`
    """
    data = read_toml(path)
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{Path(path).expanduser()}: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, over those of the file that it names as its `base`.

    A base lies beside the file that names it. Tables are joined key by key; of anything else, lists
    too, the value of the nearer file stands.

    Raises:
        ConfigError: a file is missing, too large or no TOML; or bases form a circle
    """
    place = Path(path).expanduser()
    chain: list[dict[str, Any]] = []
    seen: set[str] = set()
    while (key := os.path.abspath(place)) not in seen:
        seen.add(key)
        data = _parsed(place)
        chain.append(data)
        base = data.pop("base", None)
        if base is None:
            return reduce(_joined, reversed(chain))
        if not isinstance(base, str):
            raise ConfigError(f"{place}: 'base' should be a path, got {_shown(base)}")
        place = place.parent / base
    raise ConfigError(f"{Path(path)}: its bases come back to {place}; leave one `base` out")


def _parsed(place: Path) -> dict[str, Any]:
    """The tables of one file."""
    try:
        with open_regular(place) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{place} is too large for a recipe (more than {MAX_BYTES} bytes)")
        return tomllib.loads(text.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} should be TOML: {error}") from error
    except ReadError as error:
        raise ConfigError(f"cannot read the recipe: {error}") from error


def _joined(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `base`, table by table."""
    both = {
        key: _joined(base[key], value)
        for key, value in own.items()
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **own, **both}


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """A dataclass from a table of plain values; `where` names the table in errors.

    Understands bool, int, float, str, Path, Literal, unions, tuples, lists, frozen sets, mappings
    with keys of text, Any, and dataclasses of those. Integers pass for floats; nothing else is
    converted.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'this'} should be a table, got {_shown(data)}")
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ConfigError(
                f"there is no key {_path(where, str(key))!r}."
                f"{suggest(str(key)[:200], known)} Known here: {', '.join(known)}"
            )
    hints = get_type_hints(cls)
    values = {key: convert(hints[key], value, _path(where, key)) for key, value in data.items()}
    missing = [key for key, f in known.items() if key not in values and _is_required(f)]
    if missing:
        raise ConfigError(f"it needs the key {_path(where, missing[0])!r}, which is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def arguments_of(
    function: Callable[..., Any], table: Mapping[str, Any], *, where: str = ""
) -> dict[str, Any]:
    """The keyword arguments that a table of plain values gives a typed function.

    Raises:
        ConfigError: it has no such argument, one is missing, or a value has the wrong type
    """
    hints, known = get_type_hints(function), signature(function).parameters
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where or function.__name__} has no key {key[:80]!r}.{suggest(key, known)} "
                f"Known: {', '.join(known)}"
            )
    missing = [k for k, p in known.items() if k not in table and p.default is Parameter.empty]
    if missing:
        raise ConfigError(f"{where or function.__name__} needs the key {missing[0]!r}")
    return {key: convert(hints[key], value, _path(where, key)) for key, value in table.items()}


def convert(wanted: Any, value: Any, where: str) -> Any:
    """The value as the wanted type.

    Raises:
        ConfigError: it is of another; tells both, and where it stands
    """
    if wanted is Any:
        return value
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _union(wanted, value, where)
    if origin is Literal:
        return _literal(wanted, value, where)
    if isinstance(origin, type) and issubclass(origin, tuple):
        return _tuple(wanted, value, where)
    if origin is frozenset:
        listed = sorted(value) if isinstance(value, set | frozenset) else value
        inner = get_args(wanted)[0]
        found = (convert(inner, v, f"{where}[{i}]") for i, v in enumerate(items(listed, where)))
        return frozenset(found)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(wanted, value, where)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = get_args(wanted)[0]
        return [convert(inner, v, f"{where}[{i}]") for i, v in enumerate(items(value, where))]
    if is_dataclass(wanted) and isinstance(wanted, type):
        return value if isinstance(value, wanted) else from_dict(wanted, value, where=where)
    return _scalar(wanted, value, where)


def _scalar(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float and type(value) in (int, float):
        return _finite(value, where)
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    if wanted in (dict, list, tuple) and isinstance(value, wanted):
        return value
    if wanted is None or wanted is type(None):
        if value is None:
            return None
    elif type(value) is wanted:
        if wanted is int and abs(value) > MAX_INTEGER:
            raise ConfigError(f"'{where}' should be a number of a sensible size, got {value!r:.80}")
        return value
    raise ConfigError(f"'{where}' should be {_name(wanted)}, got {_shown(value)}")


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"'{where}' should be a finite number, got {_shown(value)}")
    return number


def _union(wanted: Any, value: Any, where: str) -> Any:
    """The first member that fits; when none does and one member is a table, its own complaint."""
    members = get_args(wanted)
    complaints: list[ConfigError] = []
    for member in members:
        try:
            return convert(member, value, where)
        except ConfigError as error:
            complaints.append(error)
    tables = [m for m in members if is_dataclass(m)]
    if isinstance(value, Mapping) and len(tables) == 1:
        raise complaints[members.index(tables[0])]
    raise ConfigError(f"'{where}' should be {_name(wanted)}, got {_shown(value)}")


def _literal(wanted: Any, value: Any, where: str) -> Any:
    choices = get_args(wanted)
    if any(value == c and type(value) is type(c) for c in choices):
        return value
    hint = suggest(value, [str(c) for c in choices]) if isinstance(value, str) else ""
    raise ConfigError(f"'{where}' should be {_name(wanted)}, got {_shown(value)}.{hint}")


def _tuple(wanted: Any, value: Any, where: str) -> tuple[Any, ...]:
    found = items(value, where)
    inner = get_args(wanted)
    if len(inner) == 2 and inner[1] is Ellipsis:
        inner = (inner[0],) * len(found)
    if len(found) != len(inner):
        raise ConfigError(f"'{where}' should hold {len(inner)} values, got {len(found)}")
    pairs = zip(inner, found, strict=True)
    return tuple(convert(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(pairs))


def _mapping(wanted: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{where}' should be a table, got {_shown(value)}")
    inner = get_args(wanted)[1]
    return {str(key): convert(inner, v, _path(where, str(key))) for key, v in value.items()}


def items(value: Any, where: str) -> Sequence[Any]:
    """The items of a list or tuple.

    Raises:
        ConfigError: it is none
    """
    if not isinstance(value, list | tuple):
        raise ConfigError(f"'{where}' should be a list, got {_shown(value)}")
    return value


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _path(where: str, key: str) -> str:
    return f"{where}.{key[:80]}" if where else key[:80]


def _shown(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"


def _name(wanted: Any) -> str:
    """A type in the words of a recipe's author."""
    words: dict[Any, str] = {
        int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path",
        type(None): "nothing", dict: "a table", list: "a list", tuple: "a list",
    }  # fmt: skip
    if wanted in words:
        return words[wanted]
    origin = get_origin(wanted)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(wanted))
    if origin in (Union, types.UnionType):
        return " or ".join(_name(m) for m in get_args(wanted) if m is not type(None))
    if isinstance(origin, type):
        return "a table" if issubclass(origin, Mapping) else "a list"
    return "a table" if is_dataclass(wanted) else str(getattr(wanted, "__name__", wanted))
