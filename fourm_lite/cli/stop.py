"""What a verb says when a signal (SIGTERM, Ctrl-C) or the disk stops it: what is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from fourm_lite.cli.output import say
from fourm_lite.errors import StorageError
from fourm_lite.io.files import storage_error


class Stopped(BaseException):
    """Raised in the main thread by a signal, so that drafts are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable(left: str) -> Iterator[None]:
    """Says at once what is kept when a signal comes, and raises `Stopped`; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        say(f"stopped by {signal.Signals(number).name}: {left}", aside=True)
        raise Stopped(number)

    for asked in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(asked) is not signal.SIG_IGN:  # nohup and its like stay in force
            before[asked] = signal.signal(asked, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def of_system(error: OSError, left: str) -> StorageError:
    """What the system refused, in a sentence that says what is kept."""
    place = f" {error.filename}" if error.filename else ""
    return storage_error(f"the system refused{place}", error, left)
