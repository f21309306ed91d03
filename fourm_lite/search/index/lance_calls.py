"""Calls of Lance, the storage engine: its import, and its errors and panics in our words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from fourm_lite.errors import ConfigError, FourMError

ENGINE = (RuntimeError, OSError, ValueError, KeyError)
PANICS = ("PanicException", "RustPanic")
"""Classes of Lance's errors, and the names of those that derive from nothing nearer."""

Result = TypeVar("Result")


class UnreadableError(FourMError):
    """Rows of a version cannot be read (any more): the newest one may be tried, once."""


def lance() -> Any:
    """The engine, which says on the terminal what goes wrong and not what it deprecates."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lance

    return lance


def reading(where: str | None, read: Callable[[], Result]) -> Result:
    """Reads; what the engine refuses becomes one of our errors.

    Raises:
        ConfigError: the filter does not work; a message for its author
        UnreadableError: the version cannot be read
    """
    try:
        return read()
    except BaseException as error:
        # A panic of the engine is no Exception to Python
        panic = type(error).__name__ in PANICS
        if isinstance(error, FourMError) or not (panic or isinstance(error, ENGINE)):
            raise
        reason = _reason(error)
        if where is not None and not is_gone(error):
            raise ConfigError(f"the filter {where[:200]!r} does not work: {reason}") from error
        raise UnreadableError(f"the rows cannot be read ({reason})") from error


def is_gone(error: BaseException) -> bool:
    """Whether a file of the table is missing: it was deleted, or its version was dropped."""
    text = str(error).lower()
    return ".lance" in text and ("not found" in text or "no such file" in text)


def is_conflict(error: Exception) -> bool:
    """Whether another writer was faster."""
    text = str(error).lower()
    return any(word in text for word in ("conflict", "concurrent", "preempted", "already exists"))


def write_error(error: Exception) -> Exception:
    """What the engine says of a write, as an error of ours."""
    if isinstance(error, FourMError):
        return error
    return FourMError(
        f"the rows could not be written ({_reason(error)}); "
        "the last version of the index is unchanged and readable"
    )


def _reason(error: BaseException) -> str:
    """What Lance says, less the place in its own source and its private columns."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    for pattern, words in _REWORDED.items():
        text = re.sub(pattern, words, text)
    return text[:300]


_REWORDED = {
    r"(,? ?/\S+\.rs:|, rust/).*": "",
    r"^(Invalid (user )?input[,:] |Schema error: |Error during planning: )+": "",
    r", _row(id|addr|offset|_\w+_at_version)\b": "",
    r"No field named (.+?)\. Valid fields are (.+?)\.?$": r"there is no column \1, only \2",
    r"No field named (.+?)\. (Did you mean .+\?)\.?$": r"there is no column \1. \2",
}
"""Patterns in what Lance says, and what stands in their place."""
