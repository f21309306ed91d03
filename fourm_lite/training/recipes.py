"""Recipes as dataclasses: a tokenizer or a model, its data, its course. TOML in, objects out.

Paths in a recipe are relative to the current folder; a shipped tokenizer is named by name alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourm_lite.data.loader import Component, MaskedStream
from fourm_lite.data.pseudolabel import METADATA, read_labels
from fourm_lite.data.records import read_records
from fourm_lite.data.shards import (
    CROPS,
    AlignedSamples,
    Writer,
    aligned,
    caption_writer,
    read_tokens,
)
from fourm_lite.data.sources import Record
from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import from_toml
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.sequences.color_palette import palette_to_text
from fourm_lite.tokenization.sequences.metadata import metadata_to_chunks
from fourm_lite.tokenization.text import TextTokenizer, load_text_tokenizer
from fourm_lite.tokenization.vqvae import VQTokenizer
from fourm_lite.training.calibrate import Calibration, calibrate
from fourm_lite.training.figures import SearchFigures, ValRecipe
from fourm_lite.training.global_losses import soft_targets
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.tasks import PretrainTask
from fourm_lite.training.tokenizer_recipes import open_tokenizer
from fourm_lite.training.warm_start import start_from_vit


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """One source of samples: photos, captions, or photos with captions.

    Units:
        captions: a JSONL or Parquet list, a folder of photos, or captions alone (.txt, .txt.gz)
        split: which of the list's splits, "" for all
        tokens: folder of token shards; labels: folder of pseudo-labels (palette, numbers)
    """

    captions: Path
    split: str = "train"
    tokens: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """What the weights begin with.

    Units:
        model: a trained model to go on from, of the recipe's sizes and modalities
        vit: safetensors of a timm ViT for the encoder
        calibration: word vectors and a read-out by regression; needs `embeddings`
        embeddings: name of the label that holds the teacher's embeddings, in `data.labels`
    """

    vit: Path | None = None
    calibration: Calibration | None = None
    embeddings: str = ""
    model: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """The loss and its additions; see `training.global_losses`.

    Units:
        soft: modality -> temperature of soft targets; contrast, match: modality -> weight
    """

    kind: str = "mod"
    soft: Mapping[str, float] = field(default_factory=dict)
    contrast: Mapping[str, float] = field(default_factory=dict)
    contrast_temperature: float = 4.0
    match: Mapping[str, float] = field(default_factory=dict)
    match_temperature: float = 0.07


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Everything about the training of one model.

    Units:
        text: the text tokenizer, a file, folder or shipped name
        modalities: entries that the table does not hold, or that differ from it
        inputs, outputs: names, in the order of the model
        model: keyword arguments of `FourMConfig`
        data: the source that components read unless they say another, by the name of "train"
        sources: further ones, by the names that components give as their `source`
        val: figures on unseen photos, at each `train.eval_every`
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

    def __post_init__(self) -> None:
        """Refuses a further source by the name of the first."""
        if "train" in self.sources:
            raise ConfigError("[data] is the source 'train'; give sources.train another name")

    @classmethod
    def read(cls, path: Path) -> ModelRecipe:
        """The recipe of a TOML file."""
        return from_toml(cls, path)

    def config(self) -> FourMConfig:
        """The model's configuration.

        Raises:
            UnknownNameError: a modality is neither described here nor in the table
        """
        own = {m.name: m for m in (Modality.from_dict(dict(entry)) for entry in self.modalities)}
        return FourMConfig(
            inputs=tuple(own.get(n) or MODALITIES[n] for n in self.inputs),
            outputs=tuple(own.get(n) or MODALITIES[n] for n in self.outputs),
            **self.model,
        )


def build_model(recipe: ModelRecipe) -> FourM:
    """The model of a recipe with the weights that it begins with.

    Raises:
        ConfigError: `start.model` is of another size or has other modalities
    """
    start = recipe.start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = FourM(recipe.config()).init_weights()
    if start.model is not None:
        _go_on_from(model, start.model)
    if start.vit is not None:
        from safetensors.torch import load_file

        start_from_vit(model, load_file(resolve(start.vit)))
    if start.calibration is not None:
        _calibrate(recipe, model, start.calibration)
    return model


def _go_on_from(model: FourM, source: Path) -> None:
    """Takes over the weights of a trained model; the recipe's own config stays."""
    from fourm_lite.model.load import load_model

    theirs = {name: value.float() for name, value in load_model(source).state_dict().items()}
    own = model.state_dict()
    other = sorted(n for n in {*own, *theirs} if _shape(own, n) != _shape(theirs, n))
    if other:
        name = other[0]
        raise ConfigError(
            f"start.model {source} does not fit the recipe: '{name}' is {_shape(theirs, name)} "
            f"there and {_shape(own, name)} here, and {len(other) - 1} more differ; copy its "
            "modalities and sizes into the recipe"
        )
    model.load_state_dict(theirs)


def _shape(state: Mapping[str, torch.Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


def _calibrate(recipe: ModelRecipe, model: FourM, options: Calibration) -> None:
    if recipe.data.labels is None or not recipe.start.embeddings:
        raise ConfigError("start.calibration needs data.labels and start.embeddings (a label)")
    records = read_records(recipe.data.captions, split=recipe.data.split)
    found = read_labels(recipe.data.labels, recipe.start.embeddings)
    values = aligned(*_swap([r.id for r in records], found))[:, 0]
    calibrate(
        model,
        records,
        torch.from_numpy(values).float(),
        _tokenizer_of(model.modality(options.target)),
        load_text_tokenizer(resolve(recipe.text)),
        options,
    )


def read_samples(
    data: DataRecipe, modalities: Mapping[str, Modality], text: TextTokenizer
) -> AlignedSamples:
    """The samples of one source: its photos, captions, tokens and labels.

    Raises:
        FourMError: tokens or labels of a modality are missing, or lack a photo
        ConfigError: tokens and labels were cut at different places
    """
    records = read_records(data.captions, split=data.split)
    ids = [r.id for r in records]
    tokens = {
        m.name: aligned(*_swap(ids, read_tokens(data.tokens, m.path)))
        for m in modalities.values()
        if m.kind == "grid" and data.tokens is not None
    }
    return AlignedSamples(
        records=records,
        tokens=tokens,
        settings=_settings(data, ids),
        texts=_writers(records, data, modalities, text),
        pixels={m.name: m.image_size or 224 for m in modalities.values() if m.kind == "pixels"},
    )


def _settings(data: DataRecipe, ids: Sequence[str]) -> Any:
    """Where the crops of a source were cut: int64[N, crops, 5], or None if nothing was cut."""
    found = []
    if data.tokens is not None:
        found.append(aligned(*_swap(ids, read_tokens(data.tokens, CROPS))))
    if data.labels is not None:
        found.append(aligned(*_swap(ids, read_labels(data.labels, CROPS))))
    if len(found) == 2 and not np.array_equal(found[0], found[1]):
        raise ConfigError(
            f"{data.tokens} and {data.labels} hold other crops of the photos, so a palette would "
            "tell of another place than the tokens; make the tokens of these labels "
            "(fourm-lite tokenize)"
        )
    return found[0] if found else None


def _swap(ids: Sequence[str], found: tuple[list[str], Any]) -> tuple[list[str], Sequence[str], Any]:
    return found[0], ids, found[1]


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
            values = aligned(*_swap([r.id for r in records], read_labels(data.labels, m.stem)))
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


def _read_of(
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


def pretraining(recipe: ModelRecipe) -> tuple[PretrainTask, MaskedStream]:
    """The task and the stream of a recipe, ready for `fit`."""
    text = load_text_tokenizer(resolve(recipe.text))
    entries = recipe.config().modalities
    # The data before the model: what is missing is told before gigabytes of weights are drawn.
    samples = {
        name: read_samples(data, _read_of(name, recipe.components, entries), text)
        for name, data in {"train": recipe.data, **recipe.sources}.items()
    }
    check_sources(recipe.components, samples)
    model = build_model(recipe)
    stream = MaskedStream(samples, recipe.components, entries, text.marks, seed=recipe.train.seed)
    soft = {
        name: soft_targets(_tokenizer_of(entries[name]), temperature)
        for name, temperature in recipe.losses.soft.items()
    }
    task = PretrainTask(
        model,
        recipe.losses.kind,  # type: ignore[arg-type]
        extra=dict(recipe.extra),
        soft=soft,
        contrast=dict(recipe.losses.contrast),
        contrast_temperature=recipe.losses.contrast_temperature,
        match=dict(recipe.losses.match),
        match_temperature=recipe.losses.match_temperature,
        tokenizers={name: _tokenizer_of(entries[name]) for name in recipe.losses.match},
    )
    if recipe.val is not None:
        task.figures = _figures(recipe.val, model, text)
    return task, stream


def _figures(recipe: ValRecipe, model: FourM, text: TextTokenizer) -> SearchFigures:
    records = read_records(recipe.captions, split=recipe.split)
    values = aligned(*_swap([r.id for r in records], read_labels(recipe.labels, recipe.label)))
    gallery = torch.from_numpy(values[:, 0]).float()
    tokenizer = _tokenizer_of(model.modality(recipe.target))
    return SearchFigures(model, tokenizer, text, records, gallery, recipe)


def _tokenizer_of(entry: Modality) -> VQTokenizer:
    if entry.tokenizer is None:
        raise ConfigError(f"'{entry.name}' names no tokenizer, and its codes are needed")
    return open_tokenizer(entry.tokenizer).requires_grad_(False)
