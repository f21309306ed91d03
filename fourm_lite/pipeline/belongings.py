"""What belongs to a model: its tokenizers, its text tokenizer, the networks of its embeddings.

Told by names alone: nothing is opened or fetched but the model's config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourm_lite.io.checkpoint import Checkpoint
from fourm_lite.io.layout import licence_at
from fourm_lite.modalities.published import FOURM, PublishedFamily
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.load import model_config
from fourm_lite.pipeline.download import TEXT_LICENCE
from fourm_lite.pipeline.given import TEXT
from fourm_lite.pipeline.readers import vq_entries
from fourm_lite.pipeline.tokenizers import Tokenizers


@dataclass(frozen=True)
class Belonging:
    """A tokenizer or network of a model.

    Units:
        kind: "tokenizer", "text" or "network"
        name: as `--tokenizers NAME=SOURCE` and `--gallery NAME` take it
        source: a folder, file or hub id; None where it is published as a pickle alone
        licence: as far as it is known without fetching anything
        gigabytes: its size, where it is known
        modalities: those that it reads and shows, or whose tokenizer was trained on it
    """

    kind: str
    name: str
    source: str | None
    licence: str | None
    gigabytes: float | None
    modalities: tuple[str, ...]


def belongings(source: str | Path, checkpoint: Checkpoint) -> list[Belonging]:
    """Tokenizers, text tokenizer and networks of a model, in this order.

    Args:
        source: what the checkpoint was opened by
        checkpoint: of a 4M model

    Raises:
        ConfigError: its config names a tokenizer that lies elsewhere
    """
    config, tokenizers = model_config(checkpoint), Tokenizers.of_model(source, checkpoint)
    entries = list(config.modalities.values())
    found = [_tokenizer(place, users) for place, users in _by_source(tokenizers, entries).items()]
    texts = [m.name for m in entries if tokenizers.speaks(m)]
    if texts and (text := tokenizers.text_source) is not None:
        licence = TEXT_LICENCE if text == FOURM.text else licence_at(Path(str(text)))
        found.append(Belonging("text", TEXT, str(text), licence, None, tuple(texts)))
    found += _encoders(tokenizers, entries)
    return found + (_networks(tokenizers.family, entries) if tokenizers.family else [])


def _encoders(tokenizers: Tokenizers, entries: Iterable[Modality]) -> list[Belonging]:
    """The networks whose vectors come with a model's captions and pictures."""
    return [
        Belonging("network", m.tokenizer or m.stem, str(place), licence_at(Path(str(place))),
                  None, (m.name,))
        for m in entries
        if m.kind == "features" and m.raw and (place := tokenizers.source(m)) is not None
    ]  # fmt: skip


def _by_source(
    tokenizers: Tokenizers, entries: Iterable[Modality]
) -> Mapping[str, Sequence[Modality]]:
    """The modalities of each tokenizer."""
    users: dict[str, list[Modality]] = defaultdict(list)
    for entry in vq_entries(entries, shown=True):
        place: Any = tokenizers.source(entry)
        if place is not None:
            users[str(place)].append(entry)
    return users


def _tokenizer(place: str, users: Sequence[Modality]) -> Belonging:
    published = FOURM.named(place)
    return Belonging(
        "tokenizer",
        users[0].tokenizer or users[0].stem.removeprefix("tok_"),
        place,
        published.licence if published else licence_at(Path(place)),
        published.gigabytes if published else None,
        tuple(m.name for m in users),
    )


def _networks(family: PublishedFamily, entries: Iterable[Modality]) -> list[Belonging]:
    users: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if (network := family.network(entry)) is not None:
            name = next(n for n, known in family.networks.items() if known is network)
            users[name].append(entry.name)
    return [
        Belonging("network", name, n.source, n.licence, n.gigabytes, tuple(users[name]))
        for name, n in family.networks.items()
        if name in users
    ]
