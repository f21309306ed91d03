"""The forks of 4M: what AION-1 and TerraMind do otherwise, as values that the model's config keeps.

Their tensors bear 4M's names and need no translation. A file's family follows from the names of
its modalities, which the forks do not share with 4M.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fourm_lite.families import Family
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.forks import AION_MODALITIES, CAPTION, TERRAMIND_MODALITIES
from fourm_lite.modalities.published import PublishedFamily, family_of
from fourm_lite.modalities.spec import Modality


@dataclass(frozen=True)
class Pooled:
    """What the users of a family take as the vector of an item: a mean over tokens.

    Args:
        of: the encoder's output, or the context that the decoder reads
        sequences: whether texts and places count, where there is a picture
    """

    of: Literal["output", "context"]
    sequences: bool = True


@dataclass(frozen=True, kw_only=True)
class MaskedFamily(Family):
    """A family of masked encoder-decoders.

    Args:
        modalities: entries by name
        defaults: config keys that its files leave out
        rules: fields of `FourMConfig`: positions, rows without keys, tied tables
        editions: of its statistics, each with a modality that only its models have
        drawn: how a target is decoded when nobody says otherwise, by kind
        pooled: what is averaged to a vector of an item, where no global embedding is predicted
    """

    modalities: Mapping[str, Modality]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    editions: Mapping[str, str] = field(default_factory=dict)
    drawn: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pooled: Pooled | None = None

    def entries(self, names: Iterable[str]) -> dict[str, Modality]:
        """Its modalities in the edition of a model that has these."""
        given = set(names)
        edition = next((e for e, mark in self.editions.items() if mark in given), "")
        if not edition:
            return dict(self.modalities)
        return {name: replace(m, edition=edition) for name, m in self.modalities.items()}


FOURM = MaskedFamily(name="fourm", title="4M", modalities=MODALITIES)
AION = MaskedFamily(
    name="aion",
    title="AION-1",
    modalities=AION_MODALITIES,
    defaults={"image_size": 224, "patch_size": 16},
    pooled=Pooled("context"),
)
TERRAMIND = MaskedFamily(
    name="terramind",
    title="TerraMind",
    modalities=TERRAMIND_MODALITIES,
    defaults={"image_size": 224, "patch_size": 16},
    rules={"positions": "interpolated", "empty_rows": "zero", "tied_tables": True},
    editions={"v01": CAPTION},
    drawn={
        "grid": {"scheme": "roar", "steps": 1, "order": "linear", "temperature": 1.0, "top_p": 0.8},
        "sequence": {"temperature": 1.0, "top_p": 0.8},
    },
    pooled=Pooled("output", sequences=False),
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


def fork_of_config(config: Mapping[str, Any]) -> MaskedFamily:
    """Whose modalities the config of a model names, in the words of ml-4m or in ours."""
    sides = [config.get(key) for key in ("domains_in", "domains_out", "inputs", "outputs")]
    entries = [entry for side in sides if isinstance(side, list) for entry in side]
    names = (entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries)
    return fork_of(name for name in names if isinstance(name, str))


def published_for(config: Mapping[str, Any]) -> PublishedFamily | None:
    """What is published for all models of a config's family, 4M's alone so far."""
    return None if fork_of_config(config) is not FOURM else family_of(config)
