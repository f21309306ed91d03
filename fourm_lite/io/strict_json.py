"""JSON from untrusted files: duplicate keys, NaN, and absurd sizes or depths are refused.

Python's own parser keeps the last of two equal keys in silence and reads `NaN`; both would let one
file mean two things to two readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fourm_lite.errors import CheckpointError

MAX_JSON_BYTES = 16 << 20
MAX_DEPTH = 64


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text; `what` names it in errors.

    >>> parse_json('{"dim": 8}', "config.json")
    {'dim': 8}

    Raises:
        CheckpointError: it is not UTF-8, not JSON, too large or too deep, repeats a key, or holds a
            number that is not finite
    """
    if len(text) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{what} should be small JSON (at most {MAX_JSON_BYTES} bytes), got {len(text)} bytes"
        )
    try:
        plain = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            plain,
            object_pairs_hook=lambda pairs: _unique(pairs, what),
            parse_constant=lambda name: _not_finite(name, what),
            parse_float=lambda digits: _finite(digits, what),
        )
        _check_depth(value, what)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply (more than {MAX_DEPTH})") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{what} should be JSON: {_short(error)}") from None
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, no regular file, or does not hold one JSON object
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"expected a file at {path}, found none")
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return as_object(parse_json(text, str(path)), str(path))


def as_object(value: Any, what: str) -> dict[str, Any]:
    """The value itself when it is a JSON object.

    Raises:
        CheckpointError: it is anything else
    """
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} should hold a JSON object, got {type(value).__name__}")
    return value


def dump_json(value: Any, what: str, *, indent: int | None = None) -> str:
    """A value as JSON that `parse_json` reads back: keys sorted, no NaN.

    Raises:
        CheckpointError: the value holds something that JSON cannot
    """
    try:
        text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
        _check_depth(value, what)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be written as JSON: {_short(error)}") from error
    return text


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"{what} holds the key {twice[:80]!r} twice")
    return out


def _not_finite(name: str, what: str) -> NoReturn:
    raise CheckpointError(f"{what} holds {name}, which is no JSON number")


def _finite(digits: str, what: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise CheckpointError(f"{what} holds {digits[:40]}, which is no finite number")
    return value


def levels(value: Any) -> Iterator[list[Any]]:
    """A JSON value and what it holds, level by level; whoever goes through them sets an end."""
    level = [value]
    while level:
        yield level
        level = [child for node in level for child in _children(node)]


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _check_depth(value: Any, what: str) -> None:
    if any(number >= MAX_DEPTH for number, _ in enumerate(levels(value))):
        raise CheckpointError(f"{what} is nested too deeply (more than {MAX_DEPTH})")


def _short(error: BaseException) -> str:
    return str(error)[:200]
