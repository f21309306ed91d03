"""The grown model learns its new modality: from captions and pixels to it, and from it to captions.

With train="tables" every old weight is frozen, so nothing that the model could do changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.add_embedding.extraction import Vectors
from fourm_lite.add_embedding.model_folder import SIDES, grow
from fourm_lite.add_embedding.options import Options
from fourm_lite.data.loader import Component, MaskedStream
from fourm_lite.data.shards import AlignedSamples, caption_writer
from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_json
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.crops import to_settings
from fourm_lite.modalities.spec import Crop, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.progress import StageProgress
from fourm_lite.sampling.passes import LEGACY_MARKS
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.checkpoints import checkpoints
from fourm_lite.training.initial.closed_form import start_logits
from fourm_lite.training.loop import TrainConfig, fit
from fourm_lite.training.losses import soft_targets
from fourm_lite.training.optim import OptimConfig
from fourm_lite.training.tasks import LossRecipe, PretrainTask

SOFT = 0.04  # temperature of the soft targets, as in generation/models/mini.toml
START = "start.json"
MAX_SOFT = 1 << 27  # numbers that a table of soft targets may hold
START_BATCHES = 144  # at most; with few photos some passes over them are enough
ALL, CAPTIONED = "all", "captioned"


@dataclass(frozen=True)
class Sources:
    """What the model can learn the new modality from, by the names of its own modalities."""

    pixels: Modality | None
    caption: Modality | None
    says_captions: bool

    @classmethod
    def of(cls, config: FourMConfig, tokenizers: Tokenizers, captions: int) -> Sources:
        """What a model and the photos offer together.

        Raises:
            ConfigError: the model reads neither pixels nor the captions
        """
        pixels = next((m for m in config.inputs if m.kind == "pixels"), None)
        caption = next(
            (m for m in config.inputs if m.kind == "sequence" and m.stem == "caption"), None
        )
        if caption is not None and (captions == 0 or not tokenizers.has_text):
            caption = None
        if pixels is None and caption is None:
            raise ConfigError(
                f"the model reads {[m.name for m in config.inputs]}, and there is nothing of "
                "these to learn from: give a model that reads pixels, or photos with captions and "
                "a text tokenizer"
            )
        says = caption is not None and caption.name in {m.name for m in config.outputs}
        return cls(pixels, caption, says)

    @property
    def names(self) -> list[str]:
        """The modalities, for the card."""
        return [m.name for m in (self.caption, self.pixels) if m is not None]


def components(entry: Modality, sources: Sources, batch_size: int) -> list[Component]:
    """What is learned toward the new modality, all of whose codes are asked for."""
    name, length = entry.name, entry.max_tokens
    found: list[Component] = []
    if sources.caption is not None:
        words, most = sources.caption.name, sources.caption.max_tokens
        found.append(
            Component(
                name=f"{words}2{name}", weight=5.0, batch_size=batch_size, source=CAPTIONED,
                inputs={words: 1.0}, input_budget=(most, most), keep={words: "all"},
                targets={name: 1.0}, target_budget=(length, length),
            )
        )  # fmt: skip
    if sources.pixels is not None:
        picture, most = sources.pixels.name, sources.pixels.max_tokens
        found.append(
            Component(
                name=f"{picture}2{name}", weight=3.0, batch_size=max(1, batch_size * 5 // 12),
                source=ALL, inputs={picture: 1.0},
                input_budget=(max(1, most // 4), max(1, most // 3)),
                targets={name: 1.0}, target_budget=(length, length),
            )
        )  # fmt: skip
    return found


def further(entry: Modality, sources: Sources, batch_size: int) -> list[Component]:
    """What teaches the encoder's table: the new modality as an input."""
    name, length = entry.name, entry.max_tokens
    found: list[Component] = []
    if sources.caption is not None and sources.says_captions:
        words, most = sources.caption.name, sources.caption.max_tokens
        found.append(
            Component(name=f"{name}2{words}", weight=1.5, batch_size=max(1, batch_size * 2 // 3),
                      source=CAPTIONED, inputs={name: 1.0}, targets={words: 1.0},
                      input_budget=(length, length), target_budget=(most, most))
        )  # fmt: skip
    if length > 1:
        found.append(
            Component(name=f"{name}2{name}", weight=0.5, batch_size=batch_size, source=ALL,
                      inputs={name: 1.0}, targets={name: 1.0},
                      input_budget=(1, max(1, length // 2)), target_budget=(length, length))
        )  # fmt: skip
    return found


def aligned_samples(
    vectors: Vectors,
    codes: npt.NDArray[np.int64],
    entry: Modality,
    sources: Sources,
    tokenizers: Tokenizers,
) -> dict[str, AlignedSamples]:
    """The photos as samples; those with captions once more by themselves."""
    crops = [Crop.center(int(h), int(w)) for h, w in vectors.sizes]
    settings = to_settings(crops)[:, None]
    rows = {
        ALL: np.arange(len(codes)),
        CAPTIONED: np.array([i for i, r in enumerate(vectors.records) if r.captions], np.int64),
    }
    made = {}
    for name, chosen in rows.items():
        if not len(chosen):
            continue
        records = [vectors.records[i] for i in chosen]
        texts = {}
        if sources.caption is not None:
            texts[sources.caption.name] = caption_writer(records, tokenizers.text().encode)
        pixels = (
            {}
            if sources.pixels is None
            else {sources.pixels.name: sources.pixels.image_size or 224}
        )
        made[name] = AlignedSamples(
            records=records,
            tokens={entry.name: codes[chosen][:, None]},
            settings=settings[chosen],
            texts=texts,
            pixels=pixels,
        )
    return made


def tune(
    model: FourM,
    entry: Modality,
    tokenizer: VQTokenizer,
    samples: Mapping[str, AlignedSamples],
    sources: Sources,
    tokenizers: Tokenizers,
    options: Options,
    folder: Path,
    tell: StageProgress,
) -> tuple[FourM, dict[str, Any]]:
    """The grown and tuned model; goes on from `folder`, where it was stopped."""
    grown = grow(model, entry, seed=options.seed)
    marks = tokenizers.text().marks if tokenizers.has_text else LEGACY_MARKS
    entries = grown.config.modalities
    toward = components(entry, sources, options.batch_size)
    stream = MaskedStream(
        samples, [*toward, *further(entry, sources, options.batch_size)], entries, marks,
        seed=options.seed,
    )  # fmt: skip
    run = folder / "run"
    if not checkpoints(run):
        tell("starting the logits", 0, 0)
        first = MaskedStream(samples, toward, entries, marks, seed=options.seed + 1)
        count = min(START_BATCHES, max(16, 4 * len(samples[ALL]) // options.batch_size))
        batches = (first.batch(step) for step in range(count))
        start = {"cross_entropy_of_start": round(start_logits(grown, entry, tokenizer, batches), 4)}
        write_json(folder / START, start)
    facts: dict[str, Any] = {"components": [c.name for c in stream.components]}
    facts |= read_json_object(folder / START)
    size = entry.max_tokens * (entry.vocab_size or 0) ** 2
    soft = {entry.name: soft_targets(tokenizer, SOFT)} if size <= MAX_SOFT else {}
    task = PretrainTask(
        grown, LossRecipe(contrast={entry.name: 0.5}, match={entry.name: 1.0}), soft=soft,
        tokenizers={entry.name: tokenizer},
    )  # fmt: skip
    result = fit(
        task, stream, _train_config(entry, options, run), resume=True,
        progress=lambda step, steps, _: tell("fine-tuning", step, steps),
    )  # fmt: skip
    tuned = load_model(run / "final")
    ledger = result.ledger
    facts |= {"steps": ledger.step, "samples": ledger.samples}
    facts |= {"passes": round(ledger.epoch, 2), "seconds": round(ledger.seconds)}
    return tuned, facts


def _train_config(entry: Modality, options: Options, out: Path) -> TrainConfig:
    old = 0.0 if options.train == "tables" else options.trunk_lr
    scale = {"": old, **{f"{side}.{entry.name}.": 1.0 for side in SIDES}}
    return TrainConfig(
        steps=options.steps,
        out=out,
        seed=options.seed,
        ema=0.98,
        save_every=50,
        keep=1,
        optim=OptimConfig(
            lr=options.lr,
            warmup_steps=min(20, options.steps),
            min_lr=0.02,
            clip=1.0,
            lr_scale=scale,
        ),
    )


@torch.no_grad()
def changed_weights(before: FourM, after: FourM, names: Sequence[str]) -> list[str]:
    """Which of the named tensors differ in any bit."""
    old, new = before.state_dict(), after.state_dict()
    return [name for name in names if not torch.equal(old[name], new[name])]
