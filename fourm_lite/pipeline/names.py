"""What a person calls a modality: its name, its stem, or its stem without `tok_`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fourm_lite.errors import UnknownNameError, suggest
from fourm_lite.modalities.spec import Modality


def find_modality(name: str, known: Mapping[str, Modality], *, role: str) -> str:
    """The modality that a name stands for: "rgb" -> "rgb@224", "depth" -> "tok_depth@224".

    Raises:
        UnknownNameError: no modality, or more than one, is called so
    """
    if name in known:
        return name
    for spelling in _SPELLINGS:
        found = [n for n, entry in known.items() if spelling(entry) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(f"{name!r} may be any of {found} as {role}; write the full name")
    raise UnknownNameError(
        f"this model has no {role} {name!r}; it has {sorted(known)}.{suggest(name, known)}"
    )


_SPELLINGS: tuple[Callable[[Modality], str], ...] = (
    lambda entry: entry.stem,
    lambda entry: entry.stem.removeprefix("tok_"),
    lambda entry: entry.tokenizer or entry.stem,
)
