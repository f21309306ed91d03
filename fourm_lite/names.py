"""Names that come from data, before they become the names of files: the one check for all of them.

A configuration, an index or a list of photos may call a thing anything; joined to a folder, `..` or
an absolute path leads out of it. Imports the errors alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fourm_lite.errors import ConfigError

LONGEST = 200
"""Bytes of a name; file systems take 255, and endings are added."""


def is_name(name: object) -> bool:
    r"""Whether a text can be the name of one file or folder anywhere, and stays where it is put.

    >>> [is_name(n) for n in ("tok_rgb@224", "..", "a/b", "/etc", "C:x", "a\\b", "", "a\x1b[2J")]
    [True, False, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not re.search(r"[/\\\0]|^[A-Za-z]:", name)
        and name.isprintable()
        and len(name.encode("utf-8", "surrogateescape")) <= LONGEST
    )


def check_name(name: object, what: str) -> str:
    """The name itself, if `is_name`; `what` says in the error whose name it is.

    Raises:
        ConfigError: it could lead out of a folder, or no file can be called so
    """
    if not is_name(name):
        raise ConfigError(
            f"{what} should be a plain name (no folder, no '..', at most {LONGEST} bytes, "
            f"printable), got {str(name)[:80]!r}"
        )
    return str(name)


def is_inside(name: str) -> bool:
    r"""Whether a relative path stays below its folder: not absolute, no ``..``, no drive.

    >>> [is_inside(n) for n in ("a/b.jpg", "../b.jpg", "/etc/passwd", "a/../../b", "C:\\x")]
    [True, False, False, False, False]
    """
    plain = name.replace("\\", "/")
    outside = plain.startswith("/") or re.match(r"[A-Za-z]:(?!:)", plain)
    return bool(plain) and not outside and "\0" not in plain and ".." not in plain.split("/")


def place_inside(folder: Path, name: object, what: str) -> Path:
    """The place that data names below a folder, links followed.

    Raises:
        ConfigError: it lies elsewhere
    """
    place = folder / name if isinstance(name, str) and is_inside(name) else None
    try:
        inside = place is not None and _is_below(place, folder)
    except (OSError, ValueError):  # a name that no file can have
        inside = False
    if place is None or not inside:
        raise ConfigError(
            f"{what} should lie in {folder}, got {str(name)[:80]!r}; what lies elsewhere is opened "
            "only when you name it yourself"
        )
    return place


def _is_below(place: Path, folder: Path) -> bool:
    """Whether a folder really lies there; the files of a hub's snapshot may be links, it not."""
    real = os.path.realpath(place if place.is_dir() else place.parent)
    root = os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def shown(text: object, *, keep: str = "") -> str:
    r"""A text as a terminal may show it: what would move the cursor or hide letters is spelled out.

    `keep` names further characters that stay, such as "\n" in text of several lines.

    >>> shown("\x1b[2Jx.png"), shown("a\nb"), shown("a\nb", keep="\n"), shown("Zoë 東")
    ('\\x1b[2Jx.png', 'a\\nb', 'a\nb', 'Zoë 東')
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in keep else _spelled(c) for c in plain)


def _spelled(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
