"""Which versions of an index are being read: locks on a file beside the rows, which a kill opens.

Byte v of the file stands for version v, and all later bytes for all later versions. Who reads locks
the bytes from the last version it knows of, together with others, and only then asks for the newest
one: what it gets is not dropped before it ends. Who drops versions locks theirs alone. Nobody who
reads waits for another who reads. On a system or file system without such locks, in an object
store, or where the file cannot be made, nobody is kept out: a read may then have to be done again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fourm_lite.io.files import descriptor

log = logging.getLogger(__name__)

FILE = "readers.lock"
READ_WAIT, DROP_WAIT = 10.0, 0.5
"""Seconds that a read waits for a drop, and a drop for those who read."""
STRUCT = "hhqqi0q"  # the system's own `struct flock`: kind, whence, start, length, process


class Pins:
    """The locks of one index; `path` is None where there can be none."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / FILE if folder is not None and sys.platform == "linux" else None

    def make(self) -> None:
        """Makes the file; where that cannot be, there are no locks."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.touch()

    @contextlib.contextmanager
    def reading(self, first: int) -> Iterator[None]:
        """Keeps version `first` and all later ones while the block runs."""
        with descriptor(self.path, os.O_RDONLY) as file:
            end = time.monotonic() + READ_WAIT
            while file is not None and not _lock(file, first, 0, alone=False):
                if time.monotonic() > end:  # whoever drops was stopped, not killed
                    log.debug("versions are being dropped in %s; read without a lock", self.path)
                    break
                time.sleep(0.002)
            yield

    @contextlib.contextmanager
    def dropping(self, newest: int) -> Iterator[int | None]:
        """Keeps out who reads versions below the number that it gives; None stands for all."""
        with descriptor(self.path, os.O_RDWR) as file:
            yield None if file is None else _free(file, newest)


def age(table: Any, version: int) -> timedelta:
    """How long ago a version of a table was written, or the first after it that is there."""
    made = {int(one["version"]): one["timestamp"] for one in table.versions()}
    first: datetime = made[min(number for number in made if number >= version)]
    return datetime.now(first.tzinfo) - first


def _free(file: int, newest: int) -> int | None:
    end = time.monotonic() + DROP_WAIT
    while time.monotonic() < end:
        if _lock(file, 0, 0, alone=True):
            return None
        time.sleep(0.002)
    end = time.monotonic() + DROP_WAIT
    while time.monotonic() < end:  # some are always reading: below all of them
        below = _first_read(file, newest)
        if below and _lock(file, 0, below, alone=True):
            return below
        time.sleep(0.002)
    return 0


def _lock(file: int, start: int, length: int, *, alone: bool) -> bool:
    """Locks bytes, all from the start on if the length is 0; whether that succeeds."""
    import fcntl

    kind = fcntl.F_WRLCK if alone else fcntl.F_RDLCK
    try:
        asked = struct.pack(STRUCT, kind, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, asked)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        log.debug("no locks on versions here: %s", error)
    return True


def _first_read(file: int, below: int) -> int:
    """The first version that somebody reads, or `below`."""
    import fcntl

    while below:
        asked = struct.pack(STRUCT, fcntl.F_WRLCK, os.SEEK_SET, 0, below, 0)
        kind, _, start, *_ = struct.unpack(STRUCT, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            break
        below = start
    return below
