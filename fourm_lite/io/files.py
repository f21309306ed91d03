"""Files and folders written whole or not at all, by one process at a time.

What is written lies beside its target under a name of its own until it is complete, is flushed to
the disk and takes the target's place by a rename. A process that is killed leaves a name that no
reader looks for; `remove_leftovers` takes it away later, unless its writer still lives.
Permissions are those of any new file: the umask decides.

A folder itself is locked (`flock`), by the file description of one process: a kill opens the lock,
no file is left behind, and forked children do not keep it. Where a system or file system knows no
such lock, nobody is kept out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import FourMError, StorageError

if TYPE_CHECKING:
    import numpy.typing as npt

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
    errno.EROFS: "the file system can only be read",
    errno.EACCES: "writing there is not allowed",
    errno.EPERM: "writing there is not allowed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder of that name stands there",
    errno.ENAMETOOLONG: "the name is too long",
}
ADVICE = {
    errno.ENOSPC: "make room and try again",
    errno.EDQUOT: "make room and try again",
    errno.EFBIG: "raise the limit (ulimit -f) and try again",
}
_LEFTOVER = re.compile(
    r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)(-(?P<start>\d+))?-(?P<draw>[0-9a-f]{8})\.tmp",
    re.DOTALL,
)
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems that know none
_live: set[str] = set()  # draws of this process that are being written


@contextlib.contextmanager
def replacing(path: str | Path, *, kept: str = "", sync: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` for a file; it takes its place when the block ends well.

    Args:
        path: where the file goes; its folder is made
        kept: what a failure leaves to the user, for the message
        sync: waits until the disk holds it, so that a power cut takes nothing back

    Raises:
        StorageError: it cannot be written; what stood there before still does
    """
    target = Path(path)
    with storage_errors(target, kept=kept):
        if _is_device(target):
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft(target) as draft:
            yield draft
            if sync:
                flush(draft)
            os.replace(draft, target)
        if sync:
            flush(target.parent)


@contextlib.contextmanager
def replacing_folder(path: str | Path, *, kept: str = "") -> Iterator[Path]:
    """A new folder beside `path` that takes its place, whole, when the block ends well.

    A folder that stood there is taken away first: a kill in between leaves none, never a mixture.

    Raises:
        StorageError: it cannot be written
    """
    target = Path(path)
    with storage_errors(target, kept=kept):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft(target) as draft:
            draft.mkdir()
            yield draft
            for file in sorted(draft.rglob("*"), reverse=True):
                flush(file)
            flush(draft)
            remove_folder(target)
            os.rename(draft, target)
        flush(target.parent)


def write_whole(
    path: str | Path, content: str | bytes, *, kept: str = "", sync: bool = True
) -> Path:
    """Writes a file, text as UTF-8: another process sees the old one or the new one.

    Raises:
        StorageError: see `replacing`
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, kept=kept, sync=sync) as draft:
        draft.write_bytes(data)
    return Path(path)


def write_json(path: str | Path, value: Any, *, indent: int | None = 1, kept: str = "") -> Path:
    """Writes a JSON file, whole or not at all.

    Raises:
        StorageError: see `replacing`
    """
    return write_whole(path, json.dumps(value, indent=indent) + "\n", kept=kept)


def write_npz(
    path: str | Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    kept: str = "",
    sync: bool = True,
) -> Path:
    """Writes arrays to one .npz file, whole or not at all.

    Raises:
        StorageError: see `replacing`
    """
    import numpy as np

    with replacing(path, kept=kept, sync=sync) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return Path(path)


def remove_folder(path: Path) -> None:
    """Removes a folder and what is in it; it is renamed first, so no half of it bears its name.

    Raises:
        StorageError: it cannot be removed
    """
    gone = contextlib.suppress(FileNotFoundError)
    with storage_errors(path, verb="remove"), _draft(path) as draft, gone:
        os.rename(path, draft)


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Removes what killed processes left in a folder while they wrote.

    Args:
        folder: may be absent
        alone: nobody else can be writing here or below (a lock says so), so whatever was left
            goes, in all sub-folders too; else only the folder itself is looked at, and only what
            processes of this machine left that are gone
    """
    for place, folders, files in os.walk(folder):  # what cannot be read is not ours to clean
        for name in (*folders, *files):
            found = _LEFTOVER.fullmatch(name)
            if found and (alone or _is_dead(**found.groupdict())) and found["draw"] not in _live:
                _remove(Path(place, name))
        if not alone:
            return


@contextlib.contextmanager
def storage_errors(path: Path, *, kept: str = "", verb: str = "write") -> Iterator[None]:
    """Turns what the system says of a file in the block into one sentence.

    Raises:
        StorageError: the block raised an OSError
    """
    stood = os.path.lexists(path)
    try:
        yield
    except OSError as error:
        if isinstance(error, FourMError):
            raise
        rest = kept or ("what stood there is unchanged" if stood else "no part of it is left")
        raise storage_error(f"cannot {verb} {path}", error, rest) from error


def storage_error(what: str, error: OSError, kept: str) -> StorageError:
    """An error of the system as one of ours: what failed, why, what is kept, what to do."""
    number = error.errno or 0
    why = REASONS.get(number) or error.strerror or str(error) or type(error).__name__
    told = StorageError(f"{what}: {why}; {kept}; {ADVICE.get(number, 'choose another place')}")
    told.errno = error.errno
    return told


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A name beside the target that no other process or thread has; nothing is left under it."""
    draw = secrets.token_hex(4)
    name = target.name.encode()[:150].decode(errors="ignore")  # a name has 255 bytes at most
    process = f"{os.getpid()}-{_start(os.getpid())}"
    draft = target.with_name(f".{name}.{_machine()}-{process}-{draw}.tmp")
    _live.add(draw)
    try:
        yield draft
    finally:
        _live.discard(draw)
        _remove(draft)


def _remove(path: Path) -> None:
    """Removes a file or a folder where that is possible; a left-over does no harm."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Tells machines, and containers with process numbers of their own, apart."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    import platform

    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _start(process: int) -> int:
    """When a process began, as its number is reused by others; 0 where that is not known."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(told.rpartition(")")[2].split()[19])  # clock ticks since the machine began


def _is_dead(machine: str, process: str, start: str | None, draw: str) -> bool:
    """Whether the writer of a draft is known to be gone."""
    if machine != _machine() or os.name != "posix":
        return False
    if int(process) == os.getpid():
        return draw not in _live  # of an earlier process with our number
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    began = _start(int(process))
    return bool(start and int(start) and began and int(start) != began)


def _is_device(path: Path) -> bool:
    """Whether it is written into, as /dev/stdout and named pipes are, and never replaced."""
    if path.parent == Path("/dev") or Path("/proc") in path.parents:
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def flush(path: Path) -> None:
    """Waits until the disk holds a file's bytes, or a folder's names where the system can."""
    # The names follow a renaming that has happened: an error could not take it back.
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
        finally:
            os.close(descriptor)


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
