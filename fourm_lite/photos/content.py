"""Bytes of photos: the one place where a file is opened or a member of an archive is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fourm_lite.reading.regular import open_regular, read_photo


@dataclass(frozen=True)
class FileContent:
    """A file that is read when its bytes are needed."""

    path: Path

    def __call__(self) -> bytes:
        """The bytes.

        Raises:
            OSError: see `read_file`
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
    """The bytes of a whole photo.

    Raises:
        ReadError: it is no regular file, larger than any photo, or may not be read
    """
    return read_photo(path)


def begins_with(path: Path, starts: tuple[bytes, ...], count: int = 8) -> bool:
    """Whether a file begins with one of these; no where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(count).startswith(starts)
    except OSError:
        return False
