"""Bytes of photos: the one place where a file is opened or a member of an archive is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class FileContent:
    """A file that is read when its bytes are needed."""

    path: Path

    def __call__(self) -> bytes:
        """The bytes.

        Raises:
            OSError: the file is gone or may not be read
        """
        return read_file(self.path)


@dataclass(frozen=True)
class HeldContent:
    """Bytes that came with their source, a member of an archive or a cell of a table."""

    data: bytes = field(repr=False)

    def __call__(self) -> bytes:
        """The bytes."""
        return self.data


def read_file(path: Path) -> bytes:
    """The bytes of a whole file."""
    return path.read_bytes()


def read_stream(stream: IO[bytes] | None) -> bytes:
    """The bytes of a member of an archive."""
    return b"" if stream is None else stream.read()


def begins_with(path: Path, starts: tuple[bytes, ...], count: int = 8) -> bool:
    """Whether a file begins with one of these; no where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count).startswith(starts)
    except OSError:
        return False
