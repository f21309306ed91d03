"""Recipes as dataclasses: a tokenizer or a model, its data, its course. TOML in, objects out.

Paths in a recipe are relative to the current folder; a shipped tokenizer is named by name alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.loader import Component, MaskedStream
from fourm_lite.data.shards import (
    AlignedSamples,
    aligned,
    read_tokens,
)
from fourm_lite.data.unread import usable
from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import from_toml
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig, check_keys
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.records import Record, read_records
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer, load_text_tokenizer
from fourm_lite.training.distill import DistilledFourM
from fourm_lite.training.global_losses import soft_targets
from fourm_lite.training.initial.code_tables import (
    CodesRecipe,
    code_vectors,
    space_of_words,
    start_codes,
    table_of,
)
from fourm_lite.training.initial.convolutions import start_convolutions, start_map
from fourm_lite.training.initial.heads import start_heads
from fourm_lite.training.initial.start import start_from_vit
from fourm_lite.training.initial.token_statistics import Calibration, calibrate, parts_of
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.recipe_data import (
    DataRecipe,
    changed,
    check_sources,
    in_order,
    read_of,
    read_samples,
)
from fourm_lite.training.tasks import PretrainTask
from fourm_lite.training.tokenizer_recipes import open_tokenizer
from fourm_lite.training.validation import SearchFigures, ValRecipe

MAP_BATCHES = 24  # that the map of start.convolutions is solved from
_BESIDE = re.compile(r"\.conv(olutions|_map)\.")


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """What the weights begin with.

    Units:
        model: a trained model to go on from, of the recipe's sizes and modalities
        vit: safetensors of a timm ViT for the encoder
        calibration: word vectors and a read-out by regression; needs `embeddings`
        codes: vectors of the codes of maps by regression; needs `embeddings`
        embeddings: name of the label that holds the teacher's embeddings, in `data.labels`
        convolutions: ONNX file of a MobileNetV2 whose first layers those beside the encoder take;
            a `model` may then be without any, and one that has trained ones keeps them
        heads: batches from which the heads of `losses.distill` are solved; 0 draws them
    """

    vit: Path | None = None
    calibration: Calibration | None = None
    codes: CodesRecipe | None = None
    embeddings: str = ""
    model: Path | None = None
    convolutions: Path | None = None
    heads: int = 0


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """The loss and its additions; see `training.global_losses`.

    Units:
        soft: modality -> temperature of soft targets; contrast, match, regress: modality -> weight
        distill: label of a teacher's feature map or vector -> weight; its size is read from the
            labels. A weight of 0 leaves it out, where a base has it
        distill_after: label of a map -> the encoder block that is to know it, from 1; without an
            entry it is asked of the encoder's output
    """

    kind: str = "mod"
    soft: Mapping[str, float] = field(default_factory=dict)
    contrast: Mapping[str, float] = field(default_factory=dict)
    contrast_temperature: float = 4.0
    match: Mapping[str, float] = field(default_factory=dict)
    match_temperature: float = 0.07
    regress: Mapping[str, float] = field(default_factory=dict)
    distill: Mapping[str, float] = field(default_factory=dict)
    distill_after: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Leaves out the maps of no weight: their heads need labels, which are large."""
        used = {name: weight for name, weight in self.distill.items() if weight}
        object.__setattr__(self, "distill", used)
        if unknown := sorted(set(self.distill_after) - set(used)):
            raise ConfigError(f"losses.distill_after names {unknown}, losses.distill does not")


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

    @classmethod
    def read(cls, path: Path) -> ModelRecipe:
        """The recipe of a TOML file."""
        return from_toml(cls, path)

    @property
    def all_sources(self) -> Mapping[str, DataRecipe]:
        """The sources by the names that components give them: `data` is "train"."""
        return {"train": self.data, **self.sources}

    def config(self) -> FourMConfig:
        """The model's configuration.

        Raises:
            UnknownNameError: a modality is neither described here nor in the table
        """
        check_keys(self.model, ("inputs", "outputs"))
        own = {m.name: m for m in (Modality.from_dict(dict(entry)) for entry in self.modalities)}
        return FourMConfig(
            inputs=tuple(own.get(n) or MODALITIES[n] for n in self.inputs),
            outputs=tuple(own.get(n) or MODALITIES[n] for n in self.outputs),
            **self.model,
        )


def build_model(recipe: ModelRecipe, hints: Mapping[str, tuple[int, ...]] | None = None) -> FourM:
    """The model of a recipe with the weights that it begins with.

    Units:
        hints: shapes of the maps that are distilled, a `DistilledFourM` then
    Raises:
        ConfigError: `start.model` is of another size or has other modalities
    """
    start = recipe.start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        config = recipe.config()
        after = recipe.losses.distill_after
        model = DistilledFourM(config, hints, after) if hints else FourM(config)
        model.init_weights()
    if start.model is not None:
        _go_on_from(model, start.model, new=start.convolutions is not None)
    if (file := _new_convolutions(start)) is not None:
        start_convolutions(model, file)
    if start.vit is not None:
        from safetensors.torch import load_file

        start_from_vit(model, load_file(resolve(start.vit)))
    if start.calibration is not None:
        _calibrate(recipe, model, start.calibration)
    if start.codes is not None:
        _begin_codes(recipe, model, start.codes)
    return model


def _go_on_from(model: FourM, source: Path, *, new: bool) -> None:
    """Takes over the weights of a trained model; the recipe's own config stays.

    Units:
        new: the model may have convolutions that the source lacks
    """
    from fourm_lite.model.load import load_model

    opened = load_model(source)
    model.family = opened.family
    theirs = {name: value.float() for name, value in opened.state_dict().items()}
    own = model.saved_state()
    if new:
        own = {n: v for n, v in own.items() if n in theirs or not _BESIDE.search(n)}
    other = sorted(n for n in {*own, *theirs} if _shape(own, n) != _shape(theirs, n))
    if other:
        name = other[0]
        raise ConfigError(
            f"start.model {source} does not fit the recipe: '{name}' is {_shape(theirs, name)} "
            f"there and {_shape(own, name)} here, and {len(other) - 1} more differ; copy its "
            "modalities and sizes into the recipe"
        )
    model.load_state_dict(theirs, strict=False)  # heads that are not saved keep what they have


def _new_convolutions(start: StartRecipe) -> Path | None:
    """The file that convolutions begin with; None where `start.model` has trained ones."""
    if start.convolutions is None or start.model is None:
        return start.convolutions
    from fourm_lite.io.checkpoint import read

    trained = any(_BESIDE.search(name) for name in read(start.model).tensors)
    return None if trained else start.convolutions


def _shape(state: Mapping[str, torch.Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


def _calibrate(recipe: ModelRecipe, model: FourM, options: Calibration) -> None:
    records, values = _labelled(recipe, recipe.data, "calibration")
    calibrate(
        model,
        records,
        values[:, 0],
        _tokenizer_of(model.modality(options.target)),
        load_text_tokenizer(resolve(recipe.text)),
        options,
    )


def _begin_codes(recipe: ModelRecipe, model: FourM, options: CodesRecipe) -> None:
    """Vectors of codes from the maps of `data`, in the space of the words of `codes.source`."""
    sources = recipe.all_sources
    if options.source not in sources:
        raise ConfigError(
            f"start.codes: no source {options.source!r}.{suggest(options.source, sources)}"
        )
    if recipe.data.tokens is None:
        raise ConfigError("start.codes needs data.tokens (made by fourm-lite tokenize)")
    tables = {name: table_of(model, name) for name in (options.captions, *options.norms)}
    tokenizer = _tokenizer_of(model.modality(options.target))
    text = load_text_tokenizer(resolve(recipe.text))
    records, values = _labelled(recipe, sources[options.source], "codes")
    owner = [i for i, r in enumerate(records) for _ in r.captions]
    words = [text.encode(c) for r in records for c in r.captions]
    said = parts_of(tokenizer, values[:, 0])[owner]
    learnt = tables[options.captions].weight.detach()
    space = space_of_words(learnt, words, said, options.word_penalty)
    records, values = _labelled(recipe, recipe.data, "codes")
    goals = parts_of(tokenizer, values.flatten(0, 1))
    for name, norm in options.norms.items():
        found = read_tokens(recipe.data.tokens, model.modality(name).path)
        tokens = torch.from_numpy(aligned(*in_order([r.id for r in records], found)))
        rows = tokens.long().flatten(2).flatten(0, 1)
        vectors = code_vectors(rows, goals, tables[name].num_embeddings, options.penalty)
        start_codes(tables[name], vectors, space, norm)


def _labelled(recipe: ModelRecipe, data: DataRecipe, key: str) -> tuple[list[Record], torch.Tensor]:
    """The records of a source and the teacher's vectors of their crops: float[N, crops, C]."""
    if data.labels is None or not recipe.start.embeddings:
        raise ConfigError(f"start.{key} needs labels of its source and start.embeddings (a label)")
    found = read_labels(data.labels, recipe.start.embeddings)
    records = usable(read_records(data.captions, split=data.split), set(found[0]))
    values = aligned(*in_order([r.id for r in records], found))
    return records, torch.from_numpy(values).float()


def pretraining(recipe: ModelRecipe) -> tuple[PretrainTask, MaskedStream]:
    """The task and the stream of a recipe, ready for `fit`."""
    text = load_text_tokenizer(resolve(recipe.text))
    entries = recipe.config().modalities
    # The data before the model: what is missing is told before gigabytes of weights are drawn.
    samples = {
        name: read_samples(
            data,
            read_of(name, recipe.components, entries),
            text,
            {label for c in recipe.components if c.source == name for label in c.labels},
        )
        for name, data in recipe.all_sources.items()
        if name == "train" or any(c.source == name for c in recipe.components)
    }
    check_sources(recipe.components, samples)
    model = build_model(recipe, _hints(recipe.losses.distill, samples))
    stream = MaskedStream(samples, recipe.components, entries, text.marks, seed=recipe.train.seed)
    if _new_convolutions(recipe.start) is not None:
        start_map(model, stream, MAP_BATCHES)
    if isinstance(model, DistilledFourM) and recipe.start.heads:
        start_heads(model, stream, recipe.start.heads)
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
        regress=dict(recipe.losses.regress),
        distill=dict(recipe.losses.distill),
        tokenizers={
            name: _tokenizer_of(entries[name])
            for name in {*recipe.losses.match, *recipe.losses.regress}
        },
    )
    if recipe.val is not None:
        task.figures = _figures(recipe.val, model, text)
    return task, stream


def _hints(
    wanted: Iterable[str], samples: Mapping[str, AlignedSamples]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the maps and vectors that are distilled, as the labels hold them."""
    found = {
        name: rows.shape[2:]
        for s in samples.values()
        for name, rows in s.labels.items()
        if name in wanted
    }
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise ConfigError(
            f"losses.distill names {absent}, which no component has among its `labels`"
        )
    other = [name for name, shape in found.items() if len(shape) not in (1, 3)]
    if other:
        raise ConfigError(
            f"losses.distill needs vectors [C] or feature maps [C, h, w], {other} are neither"
        )
    return found


def _figures(recipe: ValRecipe, model: FourM, text: TextTokenizer) -> SearchFigures:
    found = read_labels(recipe.labels, recipe.label)
    records = usable(read_records(recipe.captions, split=recipe.split), set(found[0]))
    values = aligned(*in_order([r.id for r in records], found))
    gallery = torch.from_numpy(values[:, 0]).float()
    tokenizer = _tokenizer_of(model.modality(recipe.target))
    return SearchFigures(model, tokenizer, text, records, gallery, recipe)


def _tokenizer_of(entry: Modality) -> VQTokenizer:
    if entry.tokenizer is None:
        raise ConfigError(f"'{entry.name}' names no tokenizer, and its codes are needed")
    return open_tokenizer(entry.tokenizer).requires_grad_(False)
