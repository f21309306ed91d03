"""One process at a time in a folder: a lock that a kill opens and that leaves no file behind.

The folder itself is locked (`flock`), by the file description of one process: forked children do
not keep it. Where a system or file system knows no such lock, nobody is kept out.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fourm_lite.errors import FourMError
from fourm_lite.io.files import storage_errors

log = logging.getLogger(__name__)
_held: set[int] = set()


@contextlib.contextmanager
def alone(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder, which is made, while the block runs.

    Args:
        folder: what is locked
        wait: waits for the other process instead of refusing

    Raises:
        FourMError: another process is at work there
        StorageError: the folder cannot be made
    """
    place = Path(folder)
    is_new = not place.exists()
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with descriptor(place, os.O_RDONLY) as opened:
        if opened is not None:
            _lock(opened, place, wait)
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it is left where something was written
                    place.rmdir()


@contextlib.contextmanager
def descriptor(path: Path | None, flags: int) -> Iterator[int | None]:
    """An open file to hold locks by, which forked children close; None where it cannot be opened.

    A file that cannot be opened, or a system that knows no such locks, is no error.
    """
    opened = None
    if path is not None and os.name == "posix":
        _forget_in_children()
        try:
            opened = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:  # absent, or a folder that may be written and not read
            log.debug("no lock on %s: %s", path, error)
        else:
            _held.add(opened)
    try:
        yield opened
    finally:
        if opened in _held:  # a forked child has closed it
            _held.discard(opened)
            os.close(opened)


def _lock(opened: int, place: Path, wait: bool) -> None:
    import fcntl

    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise FourMError(
                f"another process is at work in {place}; wait until it has ended, or choose "
                "another folder"
            ) from error
        log.debug("no lock on %s: %s", place, error)


@cache
def _forget_in_children() -> None:
    """A child that outlives a killed parent must not keep its folders locked."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for descriptor in tuple(_held):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()
