"""What distinguishes families of checkpoints, as values: names, layout, positions, attention.

Here is what all have in common: how a family is told apart and what its tensors are called. A kind
of network (`joint.py`, ...) adds its own fields: layout, positions, geometry. Nothing here computes
with weights; whoever builds a network reads the value and never asks for a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of published files.

    Args:
        name: in our configs
        title: for people
        door: what its specification begins with, `mmt:` or `mobileclip:`; "" for 4M's own doors
        marks: key beginnings, after `prefixes`, that all its files have and no other family's
        prefixes: what wraps every key in some of its files
        rename: patterns of its keys and our names, applied in order
        unused: patterns of keys that its files hold and its users' numbers do not depend on
    """

    name: str
    title: str
    door: str = ""
    marks: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def bare(self, key: str) -> str:
        """A key of a file without what wraps it."""
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        return key

    def owns(self, keys: Iterable[str]) -> bool:
        """Whether these are the keys of a file of this family."""
        bare = [self.bare(key) for key in keys]
        return bool(self.marks) and all(any(k.startswith(m) for k in bare) for m in self.marks)

    def renamed(self, weights: Mapping[str, Value]) -> dict[str, Value]:
        """The weights under our names, without those that are not used."""
        found = {}
        for key, value in weights.items():
            bare = self.bare(key)
            if any(re.match(pattern, bare) for pattern in self.unused):
                continue
            for pattern, ours in self.rename.items():
                bare = re.sub(pattern, ours, bare)
            found[bare] = value
        return found


def names_of(families: Mapping[str, Any]) -> str:
    """The titles of families, for a message."""
    return ", ".join(sorted({family.title for family in families.values()}))
