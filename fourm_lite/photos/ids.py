"""Ids name photos: what is found by them, labels, tokens and figures, is found once or refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fourm_lite.errors import FourMError


def places_of(ids: Sequence[str], what: str) -> dict[str, int]:
    """The place of each id.

    >>> places_of(["a", "b"], "the labels")
    {'a': 0, 'b': 1}

    Raises:
        FourMError: an id stands twice; `what` says in the error where
    """
    found = {name: place for place, name in enumerate(ids)}
    if len(found) < len(ids):
        twice = repeated(ids)
        raise FourMError(
            f"the id {twice!r} stands twice in {what}, so it is not known whose values are whose; "
            "make them again from photos with ids of their own"
        )
    return found


def repeated(ids: Iterable[str]) -> str | None:
    """The first id that stands twice, or None."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None
