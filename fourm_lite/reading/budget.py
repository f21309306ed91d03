"""How much is read at once from files of others: one budget for all readers, and one option.

What a file declares of its sizes is not believed: bytes are counted while they are read. What is
read at once may be as large as its file really is on the disk, or as the budget, whichever is more:
so an honest large file is read, and a small one that grows when it is unpacked, or a sparse one, is
not.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace

from fourm_lite.errors import ConfigError

VARIABLE = "FOURM_LITE_MAX_BYTES"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Budget:
    """How much is read at once from a file that is smaller on the disk.

    Units:
        bytes: of a file, a member of an archive, a line, or all that a compressed archive holds
        rows: of a table; columns: of a row
    """

    bytes: int = 1 << 30
    rows: int = 1 << 20
    columns: int = 1000


_now = Budget()


def budget() -> Budget:
    """The budget in force; the variable FOURM_LITE_MAX_BYTES sets its bytes at the start."""
    return _now


def set_budget(**changes: int) -> None:
    """Changes the budget of this process: `set_budget(bytes=8 << 30)`.

    Raises:
        ConfigError: no such number, or one below 1
    """
    global _now
    for name, value in changes.items():
        if name not in Budget.__dataclass_fields__ or type(value) is not int or value < 1:
            known = ", ".join(Budget.__dataclass_fields__)
            raise ConfigError(f"a budget says {known}, each at least 1, got {name}={value!r}")
    _now = replace(_now, **changes)


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    >>> parse_bytes("512"), parse_bytes("4GB"), parse_bytes("1.5 MiB")
    (512, 4294967296, 1572864)

    Raises:
        ConfigError: it is none
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None or float(found[1]) * _UNITS[found[2]] < 1:
        raise ConfigError(f"expected a number of bytes such as 512MB or 8GB, got {text[:40]!r}")
    return int(float(found[1]) * _UNITS[found[2]])


if VARIABLE in os.environ:
    with contextlib.suppress(ConfigError):  # told by whoever reads the option
        set_budget(bytes=parse_bytes(os.environ[VARIABLE]))
