"""The library's own exceptions and the helpers that phrase them.

Every message has three parts: what was expected, what came, what to do.
Imports nothing of the library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class FourMError(Exception):
    """Base of every error that fourm_lite raises on purpose."""


class ShapeError(FourMError, ValueError):
    """A tensor has the wrong shape or dtype."""


class ConfigError(FourMError, ValueError):
    """A configuration, name or option is wrong."""


class CheckpointError(FourMError, OSError):
    """A checkpoint cannot be read or does not fit."""


class StorageError(FourMError, OSError):
    """A file cannot be written: a full disk, a folder that can only be read."""

    def __str__(self) -> str:
        """The message alone (OSError would put the system's number in its place)."""
        return str(self.args[0])


class NotFetchedError(CheckpointError):
    """Something of the hub is not in the cache, and could not be fetched.

    `source` is what `fourm-lite download` fetches it by, `cause` why it could not be fetched now.
    """

    def __init__(self, message: str, source: str, cause: str = "") -> None:
        super().__init__(message)
        self.source, self.cause = source, cause


class ReadError(FourMError, OSError):
    """A file cannot be read: it is gone, damaged, no regular file, or larger than is allowed."""


class UnknownNameError(ConfigError, KeyError):
    """A name that a table of the library does not hold."""

    def __str__(self) -> str:
        """The message alone (KeyError would quote it)."""
        return str(self.args[0])


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or an empty string.

    >>> suggest("tok_dpeth@224", ["tok_depth@224", "caption"])
    " Did you mean 'tok_depth@224'?"
    """
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_choice(what: str, *names: object, of: Iterable[str], advice: str = "") -> None:
    """Refuses names that are none of some; the nearest is suggested, and what else may be done.

    >>> check_choice("order", "cosine", of=("cosine", "linear"))

    Raises:
        UnknownNameError: one of them is none
    """
    known = list(of)
    for name in names:
        if name not in known:
            listed, near = ", ".join(k or "''" for k in known), suggest(str(name), known)
            told = f"{what} is one of {listed}, got {str(name)[:80]!r}.{near}"
            raise UnknownNameError(f"{told} {advice}" if advice else told)


@contextmanager
def foreign_errors(kind: type[FourMError], told: str) -> Iterator[None]:
    """Whatever another library raises in the block becomes one of our errors.

    Ours stay as they are, and so does a lack of memory. Libraries that read files raise almost
    anything for a damaged one, often without a common base.

    Args:
        kind: of the error
        told: its message; "{error}" in it stands for what was raised, cut after 300 letters
    """
    try:
        yield
    except (FourMError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise kind(told.replace("{error}", reason)) from error


def check_shape(what: str, value: Any, expected: tuple[int | None, ...]) -> None:
    """Checks the shape of a tensor or array; ``None`` stands for any size.

    Raises:
        ShapeError: the rank or a fixed size differs
    """
    shape = tuple(value.shape)
    fits = len(shape) == len(expected) and all(
        e is None or e == s for e, s in zip(expected, shape, strict=True)
    )
    if not fits:
        want = "[" + ", ".join("*" if e is None else str(e) for e in expected) + "]"
        raise ShapeError(f"{what} expects shape {want}, got {list(shape)}")


def check_most(most: int, **counts: float | None) -> None:
    """Refuses counts beyond what any machine could carry out; None is not checked.

    >>> check_most(10_000, steps=20)

    Raises:
        ConfigError: one is larger
    """
    for name, value in counts.items():
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"{name} should be a number, got {str(value)[:40]!r}")
        if value is not None and value > most:
            raise ConfigError(f"{name} is at most {most}, got {str(value)[:40]}; give fewer")
