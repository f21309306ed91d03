"""Fetching what a model needs into the caches, so that it runs without a network afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fourm_lite.errors import CheckpointError, ConfigError, NotFetchedError, suggest
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.io.hub import download_command, resolve
from fourm_lite.io.layout import licence_at
from fourm_lite.modalities.published import FOURM
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.load import model_config
from fourm_lite.pipeline.given import TEXT
from fourm_lite.pipeline.readers import vq_entries
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.tokenization.words.fetch import ORIGINAL_TEXT_TOKENIZER
from fourm_lite.tokenization.words.text import find_text_tokenizer

Purpose = Literal["embed", "generate", "all"]
TEXT_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Part:
    """One thing that is fetched.

    Units:
        role: what it is for: "model", "tokenizer", "text", or the modality whose tokenizer it is
        gigabytes: its size as far as it is known before
    """

    role: str
    source: str
    gigabytes: float | None = None


@dataclass(frozen=True)
class Fetched:
    """A part that is here now."""

    part: Part
    place: Path
    licence: str | None

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        files = self.place.iterdir() if self.place.is_dir() else [self.place]
        return sum(file.stat().st_size for file in files if file.is_file())


def download(
    source: str, purpose: Purpose = "all", tell: Callable[[Part], None] | None = None
) -> list[Fetched]:
    """Fetches a model with its tokenizers, or a single tokenizer, network or text tokenizer.

    Args:
        source: a hub id, the folder of a model, or "4m" for the original's text tokenizer
        purpose: "embed" takes the global embeddings' tokenizers and the text tokenizer, "generate"
            those of all targets, "all" those of the inputs too
        tell: told of each part before it is fetched

    Raises:
        ConfigError: no such purpose
        NotFetchedError: some parts are not here and cannot be fetched; it names the command
        CheckpointError: `source` is no hub id, or what it names is damaged
    """
    if purpose not in get_args(Purpose):
        raise ConfigError(
            f"--for is one of {', '.join(get_args(Purpose))}, got {purpose!r}."
            f"{suggest(str(purpose), get_args(Purpose))}"
        )
    first = _fetched(first_part(source), tell)
    checkpoint = None if first.part.role == TEXT else _model(first)
    if checkpoint is None:
        return [first]
    done, missing = [first], []
    for part in needed(source, checkpoint, purpose):
        try:
            done.append(_fetched(part, tell))
        except NotFetchedError as error:
            missing.append(error)
    if missing:
        names = [error.source for error in missing]
        raise NotFetchedError(
            f"{', '.join(names)}: not here, and not to be fetched now ({missing[0].cause}). Fetch "
            f"once where there is a network: `{download_command(*names)}`",
            names[0],
            missing[0].cause,
        )
    return done


def first_part(source: str) -> Part:
    """What a name stands for: the text tokenizer, or a model (or tokenizer) of the hub."""
    if source == FOURM.text:
        return Part(TEXT, source)
    published = FOURM.named(source)
    role = "tokenizer" if source in {p.source for p in FOURM.tokenizers.values()} else "model"
    return Part(role, source, None if published is None else published.gigabytes)


def needed(source: str, checkpoint: Checkpoint, purpose: Purpose) -> list[Part]:
    """The tokenizers of a model for a purpose, each once."""
    config, tokenizers = model_config(checkpoint), Tokenizers.of_model(source, checkpoint)
    sizes = {p.source: p.gigabytes for p in FOURM.tokenizers.values()}
    found: dict[str, Part] = {}
    for entry in _entries(config, purpose):
        place = tokenizers.source(entry)
        if isinstance(place, str):
            found.setdefault(place, Part(entry.name, place, sizes.get(place)))
    text = tokenizers.text_source
    if isinstance(text, str) and any(map(tokenizers.speaks, config.modalities.values())):
        found[text] = Part(TEXT, text)
    return list(found.values())


def _entries(config: FourMConfig, purpose: Purpose) -> Iterator[Modality]:
    shown = vq_entries(config.outputs, shown=True)
    if purpose == "embed":
        yield from (m for m in shown if m.pos_embed == "learned")
        return
    yield from shown
    if purpose == "all":
        yield from vq_entries(config.inputs, shown=False)


def _fetched(part: Part, tell: Callable[[Part], None] | None) -> Fetched:
    if tell is not None:
        tell(part)
    if part.role == TEXT:
        place = find_text_tokenizer(part.source)
        is_original = place.name == ORIGINAL_TEXT_TOKENIZER.name
        return Fetched(part, place, TEXT_LICENCE if is_original else licence_at(place))
    place = resolve(part.source)
    published = FOURM.named(part.source)
    return Fetched(part, place, licence_at(place) or (published.licence if published else None))


def _model(fetched: Fetched) -> Checkpoint | None:
    """The checkpoint of a 4M model; a repository may hold any other network, in any form."""
    try:
        checkpoint = read(fetched.place)
    except CheckpointError:
        if fetched.part.source in {model.source for model in FOURM.models.values()}:
            raise
        return None
    config = checkpoint.config
    return checkpoint if "domains_in" in config or config.get("kind") == "fourm" else None
