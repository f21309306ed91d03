"""Places that are not on this machine: object stores and web addresses, by the extra `remote`.

A remote place is a `UPath` of universal_pathlib, which behaves as a `Path` and reads by fsspec,
with the credentials that its libraries find in the environment. Nothing else is fetched than what
was named, and what lies below it.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from fourm_lite.errors import ConfigError, ReadError

STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "https": "aiohttp", "http": "aiohttp"}
"""Protocols that are read, and the library that each needs."""
MOST_PLACES = 1 << 20
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def is_remote(path: str | Path) -> bool:
    """Whether a place is not on this machine."""
    return "://" in str(path)


def place(path: str | Path) -> Path:
    """A path or address as what reads it; `Path("s3://a/b")`, which loses a slash, is understood.

    Raises:
        ConfigError: a protocol that is not read, or the extra is not installed
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or (found[1].lower() not in STORES and not is_remote(path)):
        return Path(path).expanduser()
    protocol = found[1].lower()
    if protocol not in STORES:
        known = ", ".join(f"{name}://" for name in STORES)
        raise ConfigError(f"photos are read from this machine and from {known}, got {path}")
    if find_spec("upath") is None or find_spec(STORES[protocol]) is None:
        raise ConfigError(
            f"{path} needs packages: pip install universal-pathlib {STORES[protocol]}"
        )
    from upath import UPath

    return cast(Path, UPath(f"{protocol}://{found[2]}"))


def expand(paths: Iterable[str | Path]) -> list[Path]:
    """Places, with those that a pattern names one by one; a file that is called so is itself.

    >>> [str(p) for p in expand(["a-{08..10}.tar", "{x,y}.jpg"])]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'x.jpg', 'y.jpg']

    Raises:
        ConfigError: see `place`; or a pattern names more than a million
    """
    found: list[Path] = []
    for path in paths:
        plain = not _BRACES.search(str(path))
        if plain or (not is_remote(path) and Path(path).expanduser().exists()):
            found.append(place(path))
            continue
        names = list(itertools.islice(_named(str(path)), MOST_PLACES + 1))
        if len(names) > MOST_PLACES:
            raise ConfigError(f"{path} names more than {MOST_PLACES} places; give a part of them")
        found += map(place, names)
    return found


def _named(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for word in _words(found[1]):
        for rest in _named(after):
            yield before + word + rest


def _words(inner: str) -> Iterable[str]:
    ends = _RANGE.fullmatch(inner)
    if ends is None:
        return inner.split(",")
    first, last = int(ends[1]), int(ends[2])
    if last < first:
        raise ConfigError(f"a pattern counts upwards, got {{{inner}}}")
    return (str(number).zfill(len(ends[1])) for number in range(first, last + 1))


def open_remote(path: Path) -> IO[bytes]:
    """An open file; a web server may give it from the start to the end alone.

    Raises:
        ReadError: it is not there or cannot be reached
    """
    try:
        address: Any = path
        file = address.fs.open(address.path, "rb")
        return cast(IO[bytes], io.BufferedReader(file) if file.seekable() else file)
    except Exception as error:  # clients of stores have no common base
        raise ReadError(f"cannot read {path}: {reason(error)}") from error


def stored_bytes(file: Any) -> int:
    """What a store says that it keeps of an open file; a web server's word counts for nothing."""
    raw = getattr(file, "raw", None)
    protocol = getattr(getattr(raw, "fs", None), "protocol", ())
    kinds = {protocol} if isinstance(protocol, str) else set(protocol)
    return int(getattr(raw, "size", 0) or 0) if kinds & {"s3", "gs", "gcs"} else 0


def files_below(folder: Path) -> list[Path]:
    """The files of a bucket below a place, in the order in which a folder would be walked.

    Raises:
        ReadError: it cannot be listed
    """
    try:
        address: Any = folder
        names = [name for name in address.fs.find(address.path) if not name.endswith("/")]
    except Exception as error:
        raise ReadError(f"{folder} cannot be listed: {reason(error)}") from error
    protocol = str(folder).partition("://")[0]
    return [place(f"{protocol}://{name}") for name in sorted(names, key=lambda n: n.split("/"))]


def reason(error: Exception) -> str:
    """The first line of what a client of a store raised."""
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__
