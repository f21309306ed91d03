"""What one request, and all of them together, may cost the server."""

from __future__ import annotations

from dataclasses import dataclass

from fourm_lite.errors import ConfigError


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
