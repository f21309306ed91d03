"""What `fourm-lite train` runs: from the tables of a recipe to what it trains, and on what.

Read on from here: the recipe of its kind, the task and the data that this becomes (of a model, in
`pretraining`), and `loop.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.loader import MaskedStream
from fourm_lite.data.shards import AlignedSamples, aligned
from fourm_lite.data.unread import usable
from fourm_lite.errors import ConfigError
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import from_dict
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.records import read_records
from fourm_lite.progress import StageProgress, StepProgress
from fourm_lite.tokenization.words.text import TextTokenizer, load_text_tokenizer
from fourm_lite.training.distill import DistilledFourM
from fourm_lite.training.initial.build import build_model, new_convolutions
from fourm_lite.training.initial.closed_form import start_logits
from fourm_lite.training.initial.start import first_batches, start_heads, start_map
from fourm_lite.training.joint_encoder import JointRecipe, joint_training
from fourm_lite.training.joint_heads import JointSpaceRecipe, joint_space_training
from fourm_lite.training.loop import FitResult, Task, TrainConfig, fit
from fourm_lite.training.losses import soft_targets
from fourm_lite.training.processes import Stream
from fourm_lite.training.recipes import ModelRecipe, check_sources, read_of, read_samples
from fourm_lite.training.tasks import PretrainTask, SearchMetrics, ValRecipe
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe, tokenizer_of, tokenizer_training

Prepare = Callable[[Any, StageProgress | None], tuple[Task, Stream]]
KINDS: dict[str, tuple[type[Any], Prepare]] = {
    "joint": (JointRecipe, lambda recipe, _: joint_training(recipe)),
    "joint_space": (JointSpaceRecipe, lambda r, progress: joint_space_training(r, progress)),
    "tokenizer": (TokenizerRecipe, lambda recipe, _: tokenizer_training(recipe)),
    "model": (ModelRecipe, lambda recipe, _: pretraining(recipe)),
}
"""By the table that recipes of one kind alone have; the last is meant where there is none."""


@dataclass(frozen=True)
class Training:
    """What a recipe trains, on what, and how long."""

    task: Task
    data: Stream
    config: TrainConfig

    def run(self, *, resume: bool = False, progress: StepProgress | None = None) -> FitResult:
        """Trains; see `loop.fit`."""
        return fit(self.task, self.data, self.config, resume=resume, progress=progress)


def open_training(
    tables: Mapping[str, Any],
    *,
    where: str = "",
    steps: int | None = None,
    out: Path | None = None,
    progress: StageProgress | None = None,
) -> Training:
    """The training of a tokenizer, a model, a joint space or a joint encoder, as a recipe says.

    Args:
        tables: of the recipe, as `io.recipe.read_toml` gives them
        where: what the recipe is called in errors
        steps: instead of the recipe's number of steps
        out: instead of the recipe's folder
        progress: called as the data are made ready

    Raises:
        ConfigError: the recipe is wrong
        FourMError: its data cannot be read
    """
    kind, prepare = next((KINDS[key] for key in KINDS if key in tables), KINDS["model"])
    if not {field.name for field in fields(kind)} & set(tables):
        raise ConfigError(
            f"{where or 'this'} is no recipe: it has {', '.join(map(str, tables)) or 'no table'}; "
            f"one of a tokenizer has the table [tokenizer], one of a model [model] (docs/train.md)"
        )
    try:
        recipe = from_dict(kind, tables)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    changes = {"steps": steps, "out": out}
    config = replace(recipe.train, **{k: v for k, v in changes.items() if v is not None})
    return Training(*prepare(recipe, progress), config)


MAP_BATCHES = 24  # that the map of start.convolutions is solved from


def pretraining(recipe: ModelRecipe) -> tuple[PretrainTask, MaskedStream]:
    """The task and the stream of a recipe, ready for `fit`."""
    text = load_text_tokenizer(resolve(recipe.text))
    entries = recipe.config().modalities
    # The data first: what is missing stops the run before gigabytes of weights are drawn.
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
    if new_convolutions(recipe.start) is not None:
        start_map(model, stream, MAP_BATCHES)
    if isinstance(model, DistilledFourM) and recipe.start.heads:
        start_heads(model, stream, recipe.start.heads)
    for name, batches in recipe.start.logits.items():
        fits = [set(c.targets) == {name} for c in stream.components]
        if not any(fits):
            raise ConfigError(f"start.logits: no component asks for {name!r} alone")
        start_logits(
            model, entries[name], tokenizer_of(entries[name]), first_batches(stream, fits, batches)
        )
    soft = {
        name: soft_targets(tokenizer_of(entries[name]), temperature)
        for name, temperature in recipe.losses.soft.items()
    }
    judged = {*recipe.losses.match, *recipe.losses.regress}
    task = PretrainTask(
        model,
        recipe.losses,
        extra=dict(recipe.extra),
        soft=soft,
        tokenizers={name: tokenizer_of(entries[name]) for name in judged},
    )
    if recipe.val is not None:
        task.metrics = _metrics(recipe.val, model, text)
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


def _metrics(recipe: ValRecipe, model: FourM, text: TextTokenizer) -> SearchMetrics:
    found = read_labels(recipe.labels, recipe.label)
    records = usable(read_records(recipe.captions, split=recipe.split), set(found[0]))
    values = aligned(found, [r.id for r in records])
    gallery = torch.from_numpy(values[:, 0]).float()
    tokenizer = tokenizer_of(model.modality(recipe.target))
    return SearchMetrics(model, tokenizer, text, records, gallery, recipe)
