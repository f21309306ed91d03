"""The recipe of a model as dataclasses: what it is, its data, its losses, its course; and its data.

Paths in a recipe are relative to the current folder; a shipped tokenizer is named by name alone.
Its sources are read as aligned samples. `train.pretraining` makes a task and a stream of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.data.label_rows import LabelRows, read_labels
from fourm_lite.data.labellers import METADATA
from fourm_lite.data.loader import Component
from fourm_lite.data.shards import (
    CROPS,
    AlignedSamples,
    Writer,
    aligned,
    caption_writer,
    read_tokens,
)
from fourm_lite.data.tokenized import PHOTOS, TokenJob
from fourm_lite.data.unread import usable
from fourm_lite.errors import ConfigError, check_choice, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import Recipe, from_dict
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.photos.records import Record, read_records, read_spoken
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.metadata import metadata_to_chunks, palette_to_text
from fourm_lite.tokenization.words.text import TextTokenizer
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.tasks import LossRecipe, ValRecipe
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """One source of samples: photos, captions, or photos with captions.

    Units:
        captions: a JSONL or Parquet list, a folder of photos, or captions alone (.txt, .txt.gz)
        split: which of the list's splits, "" for all
        tokens: folder of token shards; labels: folder of pseudo-labels (palette, numbers)
        texts: each caption is a sample of its own, and photos are not read
    """

    captions: Path
    split: str = "train"
    tokens: Path | None = None
    labels: Path | None = None
    texts: bool = False


def changed(
    components: Sequence[Component], changes: Mapping[str, Mapping[str, Any]]
) -> tuple[Component, ...]:
    """The components with what differs of them, without those whose weight became 0.

    Raises:
        ConfigError: no component has such a name, or it has no such key
    """
    known = {c.name: c for c in components}
    check_choice("a component of `changes`", *changes, of=known)
    made = []
    for component in components:
        change = changes.get(component.name, {})
        if change.get("weight") != 0:
            where = f"changes.{component.name}"
            made.append(from_dict(Component, {**vars(component), **change}, where=where))
    return tuple(made)


def read_samples(
    data: DataRecipe,
    modalities: Mapping[str, Modality],
    text: TextTokenizer,
    labels: Iterable[str] = (),
) -> AlignedSamples:
    """The samples of one source: its photos, captions, tokens and labels.

    Units:
        labels: names of labels that losses ask for; features are read from the
            label of their encoder's name, of captions in a source with `texts = true`
    Raises:
        FourMError: tokens or labels of a modality are missing, or lack a photo
        ConfigError: tokens and labels were cut at different places
    """
    read = read_spoken if data.texts else read_records
    records = _usable(read(data.captions, split=data.split), data)
    ids = [r.id for r in records]
    tokens = {
        m.name: aligned(read_tokens(data.tokens, m.path), ids)
        for m in modalities.values()
        if m.kind == "grid" and data.tokens is not None
    }
    return AlignedSamples(
        records=records,
        tokens=tokens,
        settings=_settings(data, ids),
        texts=_writers(records, data, modalities, text),
        pixels={m.name: m.image_size or 224 for m in modalities.values() if m.kind == "pixels"},
        labels={name: _label_rows(data, name, ids) for name in sorted(labels)},
        features={
            m.name: _label_rows(data, m.tokenizer or m.stem, ids)
            for m in modalities.values()
            if m.kind == "features" and data.labels is not None
        },
    )


def _usable(records: list[Record], data: DataRecipe) -> list[Record]:
    """The records less photos that cannot be read and have no tokens or labels; these are reported.

    Photos whose tokens or labels were only never made stay, and are asked for.
    """
    known = []
    if data.tokens is not None:
        known.append(set(read_tokens(data.tokens, CROPS)[0]))
    if data.labels is not None:
        known.append(set(read_labels(data.labels, CROPS)[0]))
    return usable(records, *known)


def _label_rows(data: DataRecipe, name: str, ids: Sequence[str]) -> LabelRows:
    if data.labels is None:
        raise ConfigError(
            f"a component asks for the label {name!r} of {data.captions}, and its source names no "
            "folder of labels; give `labels` (made by fourm-lite pseudolabel)"
        )
    return LabelRows.read(data.labels, name, ids)


def _settings(data: DataRecipe, ids: Sequence[str]) -> Any:
    """Where the crops of a source were cut: int64[N, crops, 5], or None if nothing was cut."""
    found = []
    if data.tokens is not None:
        found.append(aligned(read_tokens(data.tokens, CROPS), ids))
    if data.labels is not None:
        found.append(aligned(read_labels(data.labels, CROPS), ids))
    if len(found) == 2 and not np.array_equal(found[0], found[1]):
        raise ConfigError(
            f"{data.tokens} and {data.labels} hold other crops of the photos, so a palette would "
            "tell of another place than the tokens; make the tokens of these labels "
            "(fourm-lite tokenize)"
        )
    return found[0] if found else None


def _writers(
    records: Sequence[Record],
    data: DataRecipe,
    modalities: Mapping[str, Modality],
    text: TextTokenizer,
) -> dict[str, Writer]:
    out: dict[str, Writer] = {}
    for m in modalities.values():
        if m.kind != "sequence":
            continue
        if m.stem == "caption" and any(r.captions for r in records):
            out[m.name] = caption_writer(records, text.encode)
        elif m.stem != "caption" and data.labels is not None:
            if m.stem not in _LABEL_TEXTS:
                raise ConfigError(
                    f"no text can be made for '{m.name}'.{suggest(m.stem, _LABEL_TEXTS)} Known: "
                    f"caption, {', '.join(_LABEL_TEXTS)}"
                )
            values = aligned(read_labels(data.labels, m.stem), [r.id for r in records])
            out[m.name] = _label_writer(values, _LABEL_TEXTS[m.stem], text)
    return out


def _palette_chunks(row: Any, bins: int) -> list[str]:
    return [palette_to_text((int(r), int(g), int(b)) for r, g, b in row if r >= 0)]


def _metadata_chunks(row: Any, bins: int) -> list[str]:
    numbers = dict(zip(METADATA, (float(v) for v in row), strict=True))
    return metadata_to_chunks(numbers, bins=bins)


_LABEL_TEXTS = {"color_palette": _palette_chunks, "metadata": _metadata_chunks}


def _label_writer(values: Any, chunks: Any, text: TextTokenizer) -> Writer:
    def write(index: int, crop: int, source: Any) -> Any:
        return [text.encode(chunk) for chunk in chunks(values[index, crop], text.bins)]

    return write


def read_of(
    source: str, components: Sequence[Component], entries: Mapping[str, Modality]
) -> dict[str, Modality]:
    """The modalities that some component reads of a source."""
    names = {name for c in components if c.source == source for name in c.names}
    return {name: entry for name, entry in entries.items() if name in names}


def check_sources(components: Sequence[Component], samples: Mapping[str, AlignedSamples]) -> None:
    """Refuses a component whose source holds nothing of one of its modalities.

    Raises:
        ConfigError: see above
    """
    for number, component in enumerate(components):
        if component.source not in samples:
            continue  # the stream names the sources that there are
        known = samples[component.source].names
        absent = [name for name in component.names if name not in known]
        if absent:
            raise ConfigError(
                f"component {component.name or number!r} reads {absent} of the source "
                f"{component.source!r}, which holds {sorted(known)}; leave them out, or make their "
                "tokens and labels (fourm-lite pseudolabel, fourm-lite tokenize)"
            )


def open_job(word: str, labels: Path | None = None, *, device: str = "cpu") -> TokenJob:
    """The job behind `[FOLDER=]NAME_OR_PATH[#LABEL]`.

    The folder is "tok_" and the tokenizer's name unless said; the label is what its recipe says
    that it learned, or the one of its own name, or the pixels where it reads three channels.

    Raises:
        CheckpointError: there is no such tokenizer
        ConfigError: it is not known which label it reads
    """
    folder, equals, rest = word.partition("=")
    source, _, label = (rest if equals else word).partition("#")
    place = resolve(source)
    name = place.parent.name if place.name == "weights" else place.stem
    tokenizer = load_tokenizer(place, device=device)
    return TokenJob(
        tokenizer,
        folder if equals else f"tok_{name}",
        _label(label, name, place, labels, tokenizer),
    )


def _label(said: str, name: str, place: Path, labels: Path | None, tokenizer: VQTokenizer) -> str:
    if said:
        return PHOTOS if said == "photos" else said
    recipe = place.parent / "recipe.toml"
    if recipe.is_file():
        values = TokenizerRecipe.read(recipe).values
        return PHOTOS if values.form == "photos" else values.label
    if labels is not None and (labels / name).is_dir():
        return name
    if tokenizer.config.n_channels == 3 and tokenizer.config.n_labels is None:
        return PHOTOS
    known = sorted(p.name for p in labels.iterdir() if p.is_dir()) if labels else []
    raise ConfigError(
        f"nothing says what the tokenizer '{name}' reads; write NAME#LABEL, with 'photos' for the "
        f"pixels or one of the labels {known}"
    )


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """What the weights begin with.

    Units:
        model: a trained model to go on from, of the recipe's sizes and modalities
        tables: modality that `model` lacks -> one of its own whose tables it begins with; "" draws
            them. Those of `model` that the recipe has not are then left out
        said: features modality -> source with captions, from which its map is solved so that a
            vector begins as the words that it goes with
        vit: safetensors of a timm ViT for the encoder
        logits: global embedding -> batches from which its logits are solved
        convolutions: ONNX file of a MobileNetV2 whose first layers those beside the encoder take;
            a `model` may then be without any, and one that has trained ones keeps them
        heads: batches from which the heads of `losses.distill` are solved; 0 draws them
    """

    vit: Path | None = None
    model: Path | None = None
    tables: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    logits: Mapping[str, int] = field(default_factory=dict)
    convolutions: Path | None = None
    heads: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(Recipe):
    """Everything about the training of one model.

    Units:
        text: the text tokenizer, a file, folder or shipped name
        modalities: entries that the table does not hold, or that differ from it
        inputs, outputs: names, in the order of the model
        model: keyword arguments of `FourMConfig`
        data: the source that components read unless they say another, by the name of "train"
        sources: further ones, by the names that components give as their `source`
        val: metrics on unseen photos, at each `train.eval_every`
        added: components beside `components`, which are those of the base
        changes: name of a component -> what of it differs; a weight of 0 leaves it out. So a recipe
            changes a mixture that its base describes.
    """

    text: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: Mapping[str, Any]
    data: DataRecipe
    components: tuple[Component, ...]
    train: TrainConfig
    modalities: tuple[Mapping[str, Any], ...] = ()
    start: StartRecipe = field(default_factory=StartRecipe)
    losses: LossRecipe = field(default_factory=LossRecipe)
    sources: Mapping[str, DataRecipe] = field(default_factory=dict)
    val: ValRecipe | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[Component, ...] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Adds to the components, changes them; refuses a source by the name of the first."""
        if "train" in self.sources:
            raise ConfigError("[data] is the source 'train'; give sources.train another name")
        object.__setattr__(self, "components", changed(self.components + self.added, self.changes))

    @property
    def all_sources(self) -> Mapping[str, DataRecipe]:
        """The sources by the names that components give them: `data` is "train"."""
        return {"train": self.data, **self.sources}

    def config(self) -> FourMConfig:
        """The model's configuration.

        Raises:
            UnknownNameError: a modality is neither described here nor in the table
        """
        if twice := sorted({"inputs", "outputs"} & self.model.keys()):
            raise ConfigError(f"{twice} stand at the top of a recipe, not in its table [model]")
        own = {m.name: m for m in (Modality.from_dict(dict(entry)) for entry in self.modalities)}
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        known = {side: tuple(own.get(n) or MODALITIES[n] for n in sides[side]) for side in sides}
        return from_dict(FourMConfig, {**self.model, **known}, where="model")
