"""The forks of 4M: what AION-1 and TerraMind do otherwise, as values that the model's config keeps.

Their tensors bear 4M's names and need no translation. A file's family follows from the names of
its modalities, which the forks do not share with 4M.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fourm_lite.families.base import Family
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.forks import AION_MODALITIES, TERRAMIND_MODALITIES
from fourm_lite.modalities.spec import Modality


@dataclass(frozen=True, kw_only=True)
class MaskedFamily(Family):
    """A family of masked encoder-decoders.

    Args:
        modalities: entries by name
        defaults: config keys that its files leave out
        rules: fields of `FourMConfig`: positions, rows without keys, tied tables
    """

    modalities: Mapping[str, Modality]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)


FOURM = MaskedFamily(name="fourm", title="4M", modalities=MODALITIES)
AION = MaskedFamily(
    name="aion",
    title="AION-1",
    modalities=AION_MODALITIES,
    defaults={"image_size": 224, "patch_size": 16},
)
TERRAMIND = MaskedFamily(
    name="terramind",
    title="TerraMind",
    modalities=TERRAMIND_MODALITIES,
    defaults={"image_size": 224, "patch_size": 16},
    rules={"positions": "interpolated", "empty_rows": "zero", "tied_tables": True},
)
MASKED_FAMILIES: dict[str, MaskedFamily] = {f.name: f for f in (FOURM, AION, TERRAMIND)}


def fork_of(names: Iterable[str]) -> MaskedFamily:
    """The fork whose modalities all of these are; 4M where they are not of one fork.

    >>> fork_of(["tok_z", "catalog"]).title, fork_of(["rgb@224", "caption"]).title
    ('AION-1', '4M')
    """
    given = list(names)
    if not given or all(name in MODALITIES for name in given):
        return FOURM
    forks = (family for family in MASKED_FAMILIES.values() if family is not FOURM)
    return next((f for f in forks if all(name in f.modalities for name in given)), FOURM)
