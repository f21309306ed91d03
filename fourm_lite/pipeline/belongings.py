"""What a checkpoint is, what belongs to it, and fetching it all, so that it runs without a network.

What it is stands in its config and its header: no weights are loaded. To a model belong its
tokenizers, its text tokenizer and the networks of its embeddings; they are told by names alone, and
only `download` fetches.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fourm_lite.errors import CheckpointError, NotFetchedError, check_choice
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.io.hub import ORIGINAL_TEXT_TOKENIZER, download_command, resolve
from fourm_lite.io.layout import licence_at
from fourm_lite.modalities.published import FOURM, PublishedFamily
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.load import model_config
from fourm_lite.pipeline.given import TEXT
from fourm_lite.pipeline.readers import vq_entries
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.tokenization.words.text import find_text_tokenizer


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, and in whose words it is written."""

    kind: str
    format: str
    config: dict[str, Any]
    inputs: tuple[Modality, ...] = ()
    outputs: tuple[Modality, ...] = ()


def describe(checkpoint: Checkpoint) -> Description:
    """What a checkpoint is, by its config and the names of its tensors.

    Raises:
        ConfigError: the config is that of nothing known
    """
    config = checkpoint.config
    written_in = f"fourm_lite {config['format']}" if "format" in config else "ml-4m"
    if config.get("kind") == "fmvit":
        return _vit(checkpoint, written_in)
    if config.get("kind") == "fourm" or "domains_in" in config:
        return _model(checkpoint, written_in)
    return _tokenizer(checkpoint, written_in)


def _model(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.model.load import model_config

    config = model_config(checkpoint)
    # a file without a decoder is the encoder of a model, saved as a backbone
    kind = "fourm" if any(n.startswith("decoder.") for n in checkpoint.tensors) else "fmvit"
    return Description(kind, written_in, config.to_dict(), config.inputs, config.outputs)


def _vit(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.backbone.vit import ViTConfig

    return Description("fmvit", written_in, ViTConfig.from_dict(checkpoint.config).to_dict())


def _tokenizer(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.tokenization.vq.config import parse_config

    config = parse_config(checkpoint.config, checkpoint.tensors).to_dict()
    return Description(str(config["class"]), written_in, config)


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """How many tensors, parameters and bytes it has, and in which types."""
    tensors = checkpoint.tensors.values()
    dtypes = Counter(tensor.dtype for tensor in tensors)
    return {
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.num_bytes for tensor in tensors),
        "dtypes": ", ".join(sorted(dtypes)),
    }


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
    found = [
        _tokenizer_of(place, users) for place, users in _by_source(tokenizers, entries).items()
    ]
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


def _tokenizer_of(place: str, users: Sequence[Modality]) -> Belonging:
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
    check_choice("--for", purpose, of=get_args(Purpose))
    first = _fetched(first_part(source), tell)
    checkpoint = None if first.part.role == TEXT else _model_of(first)
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
    for entry in _entries_for(config, purpose):
        place = tokenizers.source(entry)
        if isinstance(place, str):
            found.setdefault(place, Part(entry.name, place, sizes.get(place)))
    text = tokenizers.text_source
    if isinstance(text, str) and any(map(tokenizers.speaks, config.modalities.values())):
        found[text] = Part(TEXT, text)
    return list(found.values())


def _entries_for(config: FourMConfig, purpose: Purpose) -> Iterator[Modality]:
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


def _model_of(fetched: Fetched) -> Checkpoint | None:
    """The checkpoint of a 4M model; a repository may hold any other network, in any form."""
    try:
        checkpoint = read(fetched.place)
    except CheckpointError:
        if fetched.part.source in {model.source for model in FOURM.models.values()}:
            raise
        return None
    config = checkpoint.config
    return checkpoint if "domains_in" in config or config.get("kind") == "fourm" else None
