"""The fields of requests: one table that checks them and that the OpenAPI page is made of.

A value of JSON is checked by its kind; nothing of it is ever taken for the name of a file. Pictures
come as base64 (or a data: URL) in JSON, or as files of a form. What is more than a server takes is
refused with a status; every `FourMError` that is no `Refused` is a bad request (400).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fourm_lite.errors import ConfigError, FourMError, UnknownNameError, suggest
from fourm_lite.modalities.pictures import picture_size


@dataclass(frozen=True)
class Limits:
    """What is refused before any work is done.

    Units:
        body: bytes of a request; pixels of one picture; letters of one text
        k, rerank, values, targets: counts of one request
        waiting: requests that are read, wait or are answered; one more is told to come again
        seconds: from the first byte of a request to its answer; generation has its own
        window: seconds that the first of several requests waits for others
        batch: requests that are answered together
    """

    body: int = 16 << 20
    pixels: int = 40_000_000
    letters: int = 2_000
    k: int = 1_000
    rerank: int = 200
    values: int = 64
    targets: int = 32
    waiting: int = 64
    seconds: float = 30.0
    generating: float = 600.0
    window: float = 0.004
    batch: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"the limit '{name}' should be above 0, got {value}")


class Refused(FourMError):
    """A request that is answered by a sentence and a status."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def busy(what: str) -> Refused:
    """The queue is full."""
    return Refused(503, f"{what}; the server is busy, try again in a second", retry_after=1)


def too_late(seconds: float) -> Refused:
    """The answer took too long."""
    return Refused(504, f"there was no answer within {seconds:g} seconds; ask for less, or later")


Kind = Literal[
    "text", "texts", "pictures", "ids", "count", "flag", "numbers", "values", "names", "items"
]
IMAGE_NAMES = ("image", "not_image")
"""Parts of a form that are files."""


@dataclass(frozen=True)
class Field:
    """One field of a request; a count is `least` or more, and `most` names its limit."""

    kind: Kind
    help: str
    most: str = ""
    least: int = 0


SEARCH: dict[str, Field] = {
    "text": Field("texts", "Words, or a list of them."),
    "image": Field("pictures", "A picture in base64 or a data: URL, or a list of them."),
    "like": Field("ids", "The id of a row, or a list of them: more like these."),
    "not_text": Field("texts", "Words that are not wanted."),
    "not_image": Field("pictures", "Pictures that are not wanted."),
    "not_like": Field("ids", "Rows that are not wanted."),
    "given": Field("values", "Any modality of the model: name -> a text, a picture, token ids."),
    "weights": Field("numbers", "Name of a field -> how much it counts: {\"text\": 2}."),
    "compose": Field("text", "conditioning (one pass on all) or arithmetic."),
    "where": Field("text", "A SQL condition on the columns: year > 2020."),
    "k": Field("count", "How many hits; 10 by default.", "k", 1),
    "rerank": Field("count", "Put so many of the first in order by likelihood.", "rerank"),
}  # fmt: skip
EMBED: dict[str, Field] = {
    "items": Field("items", 'A list of texts and items: {"text": ...}, {"image": ...}, ...'),
    "text": Field("text", "In place of items: words of a single one."),
    "image": Field("pictures", "In place of items: the picture of a single one."),
}
GENERATE: dict[str, Field] = {
    "text": Field("text", "Words that are given."),
    "image": Field("pictures", "A picture that is given."),
    "given": Field("values", "Any modality of the model."),
    "targets": Field("names", "What is made, in this order; by default all that is not given."),
    "seed": Field("count", "Same seed, same result."),
    "stream": Field("flag", "Tell each step, a line of JSON each."),
}


def read_fields(body: Mapping[str, Any], table: Mapping[str, Field], limits: Limits) -> Fields:
    """The checked fields of a body; what is null is not given.

    Raises:
        UnknownNameError: there is no such field
        ConfigError: a value is of another kind, or above a limit
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name not in table:
            raise UnknownNameError(
                f"there is no field {name[:80]!r}; known are {', '.join(table)}."
                f"{suggest(name[:80], table)}"
            )
        if value is not None:
            found[name] = _READERS[table[name].kind](name, value, table[name], limits)
    return found


Fields = dict[str, Any]
Check = Callable[[str, Any, Field, Limits], Any]


def _refuse(name: str, expected: str, value: Any) -> ConfigError:
    shown = repr(value)[:60]
    return ConfigError(f"'{name}' should be {expected}, got {type(value).__name__} {shown}")


def _text(name: str, value: Any, field: Field, limits: Limits) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a text", value)
    if not value.strip():
        raise ConfigError(f"'{name}' is empty; leave it out, or say something")
    return short_enough(name, value, limits)


def short_enough(name: str, value: str, limits: Limits) -> str:
    """The text itself.

    Raises:
        ConfigError: it has more letters than are read
    """
    if len(value) > limits.letters:
        raise ConfigError(
            f"'{name}' should have at most {limits.letters} letters, got {len(value)}"
        )
    return value


def _several(one: Check) -> Check:
    def read(name: str, value: Any, field: Field, limits: Limits) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if not values or len(values) > limits.values:
            raise ConfigError(
                f"'{name}' should hold 1 to {limits.values} values, got {len(values)}"
            )
        return [one(name, v, field, limits) for v in values]

    return read


def picture(name: str, value: Any, field: Field, limits: Limits) -> bytes:
    """The bytes of a picture, whose size was looked at; they are decoded where they are used."""
    if isinstance(value, str):
        value = _from_base64(name, value)
    if not isinstance(value, bytes):
        raise _refuse(name, "a picture in base64", value)
    picture_size(value, max_pixels=limits.pixels)
    return value


def _from_base64(name: str, text: str) -> bytes:
    head, comma, rest = text.partition(",")
    if head.startswith("data:") and comma:
        if not head.endswith(";base64"):
            raise ConfigError(f"'{name}': the data: URL should be in base64, got {head[:60]!r}")
        text = rest
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"'{name}' should be a picture in base64, got {text[:40]!r}; names of files and "
            "addresses are not opened"
        ) from None


def _id(name: str, value: Any, field: Field, limits: Limits) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refuse(name, "the id of a row", value)
    return value


def _count(name: str, value: Any, field: Field, limits: Limits) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, "a whole number", value)
    most = getattr(limits, field.most) if field.most else (1 << 31) - 1
    if not field.least <= value <= most:
        raise ConfigError(f"'{name}' should be {field.least} to {most}, got {str(value)[:40]}")
    return value


def _flag(name: str, value: Any, field: Field, limits: Limits) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, "true or false", value)
    return value


def _numbers(name: str, value: Any, field: Field, limits: Limits) -> dict[str, float]:
    found = _object(name, value, limits)
    for key, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > 1e6:
            raise _refuse(f"{name}.{key[:40]}", "a number up to a million", number)
    return {key: float(number) for key, number in found.items()}


def _names(name: str, value: Any, field: Field, limits: Limits) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= limits.targets:
        raise ConfigError(f"'{name}' should hold 1 to {limits.targets} names, got {len(values)}")
    return [_text(name, v, field, limits) for v in values]


def _values(name: str, value: Any, field: Field, limits: Limits) -> dict[str, Any]:
    return _object(name, value, limits)


def _items(name: str, value: Any, field: Field, limits: Limits) -> list[dict[str, Any]]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= limits.values:
        raise ConfigError(f"'{name}' should hold 1 to {limits.values} items, got {len(values)}")
    texts = {i: _text(name, v, field, limits) for i, v in enumerate(values) if isinstance(v, str)}
    return [
        {"text": texts[i]} if i in texts else _object(name, v, limits) for i, v in enumerate(values)
    ]


def _object(name: str, value: Any, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse(name, "an object of names and values", value)
    if not 1 <= len(value) <= limits.values:
        raise ConfigError(f"'{name}' should hold 1 to {limits.values} names, got {len(value)}")
    return value


_READERS: dict[Kind, Check] = {
    "text": _text,
    "texts": _several(_text),
    "pictures": _several(picture),
    "ids": _several(_id),
    "count": _count,
    "flag": _flag,
    "numbers": _numbers,
    "values": _values,
    "names": _names,
    "items": _items,
}
assert set(_READERS) == set(get_args(Kind))


def required(found: Fields, *names: str) -> None:
    """Refuses a request that asks for nothing.

    Raises:
        Refused: none of the fields is given
    """
    if not any(name in found for name in names):
        raise Refused(400, f"nothing is asked for; give at least one of {', '.join(names)}")
