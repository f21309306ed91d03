"""Strict comparison of the names that a model expects with the names that a file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fourm_lite.errors import CheckpointError, suggest

SHOWN = 10


def check_keys(
    expected: Iterable[str], found: Iterable[str], *, optional: Iterable[str] = ()
) -> None:
    """Compares tensor names; `optional` ones may be there or not.

    Raises:
        CheckpointError: names are missing or unexpected; the first ten are told, with near names
    """
    wanted, present, free = set(expected), set(found), set(optional)
    missing = sorted(wanted - present - free)
    unexpected = sorted(present - wanted - free)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_listed(missing, unexpected)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_listed(unexpected, missing)}")
    raise CheckpointError(
        f"the weights do not fit the config ({len(wanted)} tensors expected, {len(present)} found): "
        + "; ".join(parts)
    )


def _listed(names: list[str], others: Collection[str]) -> str:
    shown = [f"{name!r}{suggest(name, others)}".rstrip(".") for name in names[:SHOWN]]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + rest
