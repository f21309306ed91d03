"""An open index that threads share: its manifest, and a reader of the newest version.

A search asks for a reader once and keeps it to its end, so it sees one version from start to end,
whatever is written meanwhile, and that version is not dropped before it ends (see `pins`). Where
files are dropped under it all the same, it is done once more with the newest. An index that was
deleted, or made anew at the same place, is noticed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from fourm_lite.errors import ConfigError
from fourm_lite.search.index.codes import Decode
from fourm_lite.search.index.lance_calls import UnreadableError
from fourm_lite.search.index.manifest import (
    FILE,
    Manifest,
    is_remote,
    read_manifest,
    write_manifest,
)
from fourm_lite.search.index.reader import Reader
from fourm_lite.search.index.storage import Rows

Result = TypeVar("Result")


class Handle:
    """The manifest and the rows of an index at an address."""

    def __init__(
        self,
        path: str,
        manifest: Manifest,
        *,
        memory_limit: int,
        decode: Decode | None,
        options: Mapping[str, str] | None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.rows = Rows(path, options)
        self._memory_limit, self._decode, self._options = memory_limit, decode, options
        self._stamp = _stamp(path)
        self._reader: Reader | None = None
        self._lock = threading.RLock()

    def newest(self) -> Reader:
        """A reader of the newest version; the same one as long as nothing was written.

        Raises:
            FourMError: the index is gone, or cannot be read
        """
        with self._lock:
            self._notice_changes()
            rows = self.rows.newest()
            if self._reader is None or self._reader.rows is not rows:
                self._reader = None  # its vectors may go before those of the new one are read
                place = None if is_remote(self.path) else Path(self.path)
                limit = self._memory_limit
                self._reader = Reader(rows, self.manifest, limit, self._decode, place)
            return self._reader

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Reader]:
        """`newest`, whose version is not dropped while the block runs."""
        with self.rows.pinned():
            yield self.newest()

    def read(self, job: Callable[[Reader], Result]) -> Result:
        """What a job reads of one version; done again, once, where that version was dropped.

        Raises:
            FourMError: the index is gone, or cannot be read
        """
        with contextlib.suppress(UnreadableError), self.pinned() as reader:
            return job(reader)
        try:
            with self.pinned() as reader:
                return job(reader)
        except UnreadableError as error:
            raise UnreadableError(
                f"the index at {self.path} cannot be read: {error}; if it was deleted or copied "
                "in part, build it again"
            ) from error

    def replace_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest.

        Raises:
            StorageError: it cannot be written; the old one is unchanged
        """
        with self._lock:
            self._notice_changes()
            write_manifest(self.path, manifest)
            self.manifest, self._stamp = manifest, _stamp(self.path)
            if self._reader is not None:
                self._reader.manifest = manifest

    def _notice_changes(self) -> None:
        """Opens the index anew where its manifest is another file than before."""
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        manifest = read_manifest(self.path)
        if manifest is None:
            raise ConfigError(
                f"the index at {self.path} is gone (no {FILE}): it was deleted or moved while it "
                "was open; build it again, or open it where it is now"
            )
        self.manifest, self._stamp, self._reader = manifest, stamp, None
        self.rows = Rows(self.path, self._options)


def _stamp(path: str) -> tuple[int, ...]:
    """Tells a manifest from another that took its place; nothing in an object store."""
    if is_remote(path):
        return ()
    try:
        found = os.stat(Path(path) / FILE)
    except OSError:
        return (0,)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def folder_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk, while others write there."""
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a writer may just have taken it away
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)
