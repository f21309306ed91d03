"""The model of a recipe with the weights that it begins with: drawn, or what others learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.shards import aligned
from fourm_lite.data.unread import usable
from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.model.embeddings import FeatureEncoder
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.records import read_records, read_spoken
from fourm_lite.tokenization.words.text import load_text_tokenizer
from fourm_lite.training.distill import DistilledFourM
from fourm_lite.training.initial.start import (
    start_convolutions,
    start_features,
    start_from_vit,
    table_of,
)
from fourm_lite.training.recipes import ModelRecipe, StartRecipe

_BESIDE = re.compile(r"\.conv(olutions|_map)\.")
_SIDES = ("encoder_embeddings.", "decoder_embeddings.")


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
        go_on_from(model, start.model, start.tables, new=start.convolutions is not None)
    if (file := new_convolutions(start)) is not None:
        start_convolutions(model, file)
    for name, source in start.said.items():
        _begin_features(recipe, model, name, source)
    if start.vit is not None:
        start_from_vit(model, load_tensors(resolve(start.vit)))
    return model


def go_on_from(model: FourM, source: Path, tables: Mapping[str, str], *, new: bool) -> None:
    """Takes over the weights of a trained model; the recipe's own config stays.

    Units:
        tables: see `StartRecipe`
        new: the model may have convolutions that the source lacks
    """
    from fourm_lite.model.load import load_model

    opened = load_model(source)
    model.family = opened.family
    theirs = {name: value.float() for name, value in opened.state_dict().items()}
    own = model.saved_state()
    if tables:
        theirs, own = _with_tables(theirs, own, tables, model)
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


State = dict[str, torch.Tensor]


def _with_tables(
    theirs: State, own: State, tables: Mapping[str, str], model: FourM
) -> tuple[State, State]:
    """What is taken over and what is compared with it, where modalities came and went."""
    for name in tables:
        if name not in model.config.modalities:
            raise ConfigError(
                f"start.tables names {name!r}, which the recipe's model has not."
                f"{suggest(name, model.config.modalities)}"
            )
    added = {f"{side}{name}.": f"{side}{old}." for name, old in tables.items() for side in _SIDES}
    moved = {
        new + key.removeprefix(old): value
        for new, old in added.items()
        for key, value in theirs.items()
        if key.startswith(old)
    }
    kept = {k: v for k, v in theirs.items() if k in own or not k.startswith(_SIDES)}
    drawn = tuple(new for new in added if not any(key.startswith(new) for key in moved))
    return kept | moved, {k: v for k, v in own.items() if not k.startswith(drawn)}


def new_convolutions(start: StartRecipe) -> Path | None:
    """The file that convolutions begin with; None where `start.model` has trained ones."""
    if start.convolutions is None or start.model is None:
        return start.convolutions
    from fourm_lite.io.checkpoint import read

    trained = any(_BESIDE.search(name) for name in read(start.model).tensors)
    return None if trained else start.convolutions


def _shape(state: Mapping[str, torch.Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


def _begin_features(recipe: ModelRecipe, model: FourM, name: str, source: str) -> None:
    """The map of a features modality from what is said of the vectors of a source."""
    embedding = dict(model.encoder_embeddings.items()).get(name)
    data = recipe.all_sources.get(source)
    if not isinstance(embedding, FeatureEncoder) or data is None or data.labels is None:
        raise ConfigError(
            f"start.said names a features modality and a source with labels and captions, got "
            f"{name!r} and {source!r}; sources are {sorted(recipe.all_sources)}"
        )
    read = read_spoken if data.texts else read_records
    found = read_labels(data.labels, embedding.modality.tokenizer or embedding.modality.stem)
    records = usable(read(data.captions, split=data.split), set(found[0]))
    spoken = [r for r in records if r.captions]
    text = load_text_tokenizer(resolve(recipe.text))
    vectors = aligned(found, [r.id for r in spoken])[:, 0]
    captions = [[text.encode(caption) for caption in r.captions] for r in spoken]
    words = next(
        m.name for m in model.config.inputs if m.kind == "sequence" and m.text_format == "text"
    )
    start_features(
        embedding.emb_proj, torch.from_numpy(vectors).float(), captions, table_of(model, words)
    )
