"""The options of `register_embedding` with their defaults, and what it refuses before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import nn

from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import ConfigError, FourMError, check_choice
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.given import TEXT

Train = Literal["tables", "all"]
MIN_PHOTOS = 24
"""Fewer training photos cannot give a code book that means anything."""
MIN_HELD_OUT = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a modality is made of a network.

    Units:
        tokens: codes of one vector; None: 16, fewer where vectors are narrow or photos are few
        codebook_size: entries of each code book; None: the largest power of two that leaves five
            photos for each entry, 16..1024
        split: which lines of a caption list are learned; None: "train" where there is such, or all
        held_out: what the figures are measured on: a share of the photos, or the name of a split;
            None: the split "val" where there is one, or a tenth
        max_held_out: at most so many photos are measured on
        tokenizer_steps: None: 18 passes over the photos
        train: "tables" leaves all old weights as they are, bit for bit; "all" trains everything
        steps: of the fine-tuning
        lr: of the new tables; trunk_lr: its share for everything else, with train="all"
        batch_size: samples a step of the fine-tuning
        title, licence: for the card and the config
    """

    tokens: int | None = None
    codebook_size: int | None = None
    split: str | None = None
    held_out: str | float | None = None
    max_held_out: int = 1000
    tokenizer_steps: int | None = None
    train: Train = "tables"
    steps: int = 300
    lr: float = 2e-3
    trunk_lr: float = 0.1
    batch_size: int = 48
    embed_batch: int = 32
    seed: int = 0
    title: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuses what cannot run, before any work."""
        check_choice("train", self.train, of=get_args(Train))
        positive = ("tokens", "codebook_size", "tokenizer_steps", "steps", "batch_size",
                    "embed_batch", "max_held_out")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.codebook_size is not None and self.codebook_size < 2:
            raise ConfigError(f"a code book needs at least 2 entries, got {self.codebook_size}")
        if not 0 < self.lr < float("inf") or not 0 < self.trunk_lr < float("inf"):
            raise ConfigError(f"lr and trunk_lr must be above 0, got {self.lr}, {self.trunk_lr}")
        share = self.held_out
        if isinstance(share, float | int) and not 0 < share < 1:
            raise ConfigError(f"held_out is a share between 0 and 1 or a split, got {share}")

    def changed(self, **changes: Any) -> Options:
        """The same options with some of them changed.

        Raises:
            ConfigError: there is no such option
        """
        check_choice("an option", *changes, of=[f.name for f in fields(self)])
        return replace(self, **changes)


def check_new_name(name: str, known: Mapping[str, Modality], tokenizers: Iterable[str]) -> None:
    """Refuses a name that cannot be a modality's, or that something of the model already has.

    Raises:
        ConfigError: it is no identifier, or it is taken
    """
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise ConfigError(
            f"a modality's name is a letter and then letters, digits and '_' (my_network), got "
            f"{name!r}"
        )
    if hasattr(nn.ModuleDict(), name):
        raise ConfigError(f"the name {name!r} means something to torch; choose another, my_{name}")
    taken = {
        word for m in known.values()
        for word in (m.name, m.stem, m.stem.removeprefix("tok_"), m.tokenizer) if word
    }  # fmt: skip
    if name in taken | set(tokenizers) | {TEXT}:
        raise ConfigError(
            f"the model already has something called {name!r} (modalities: {sorted(known)}); "
            "choose another name"
        )


def check_embedder(embedder: NetworkEmbedder) -> None:
    """Refuses a network that reads no pictures.

    Raises:
        FourMError: it embeds text alone
    """
    if "image" not in embedder.can:
        raise FourMError(
            f"'{embedder.name}' cannot embed pictures; it embeds {', '.join(embedder.can)}. Give "
            "a network with an image tower"
        )
