"""What a case may cost: seconds and memory. One that takes more, or ends otherwise, is a fault."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import time
from collections.abc import Iterator

from fourm_lite.errors import FourMError

SECONDS = 10.0
BYTES = 1 << 30
HANGS = 60  # seconds until a call that never comes back is ended with the whole process


class TooLong(BaseException):
    """A case took too long; no `except Exception` of the code under test can hide it."""


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """A block that may end well or in a FourMError, within seconds and a bound of memory.

    Raises:
        AssertionError: it took more
    """

    def late(*_: object) -> None:
        raise TooLong(f"more than {SECONDS} s")

    before, started = _peak(), time.monotonic()
    faulthandler.dump_traceback_later(HANGS, exit=True)
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.suppress(FourMError):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        faulthandler.cancel_dump_traceback_later()
    assert time.monotonic() - started < SECONDS
    assert _peak() - before < BYTES, f"{(_peak() - before) >> 20} MB"


def _peak() -> int:
    """The largest memory so far of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
