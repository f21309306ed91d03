"""Refusals with a status of HTTP; every other `FourMError` is a bad request (400)."""

from __future__ import annotations

from fourm_lite.errors import FourMError


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
