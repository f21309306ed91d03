"""From every source to every target: generated values measured beside chance and a constant guess.

Each target is generated from its sources alone (texts greedily, amounts in them at their median,
maps and embeddings as expected values) and compared with the photo's own value. *Chance* compares
the same values with another photo's; the *majority* row guesses one value for all photos, made of
the measured photos' own, so it knows more than it should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.evaluate.references import NUMBERS, References, Teachers, read_references, roles
from fourm_lite.metrics import generation as measures
from fourm_lite.metrics.generation import Cider, Measured
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.embedding import Decode, EmbeddingPlan, sample_vectors
from fourm_lite.pipeline.outputs import CUT
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import StageProgress
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.tokenization.words.sequences import FORMATS
from fourm_lite.unit import unit

SOURCES: tuple[tuple[str, ...], ...] = (
    ("pixels",), ("caption",), ("segmentation",), ("edges",), ("embedding",),
    ("caption", "segmentation"),
)  # fmt: skip
EDGE_SHARE = 2.0
"""Drawn edge pixels for each that photos have on average: coarse tokens give bands, no lines."""
_FORMAT = {"palette": "color_palette", "numbers": "metadata"}
LESS_IS_BETTER = frozenset({"palette distance", "number error"})


@dataclass(frozen=True)
class How:
    """How targets are generated.

    Args:
        decode: of maps and embeddings: "expected" averages the code vectors under the predicted
            distribution, which is the best guess; "argmax" and "sample" choose codes
        steps: forward passes of a map
        temperature: of texts; 0 takes the likeliest tokens
    """

    decode: Decode = "expected"
    steps: int = 1
    temperature: float = 0.0
    batch_size: int = 32
    seed: int = 0


def evaluate_any2any(
    pipe: FourMPipeline,
    folder: str | Path,
    split: str,
    teachers: Teachers,
    *,
    limit: int | None = None,
    how: How | None = None,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """The table of all sources and targets that the model and the teachers have.

    Args:
        pipe: a model with its tokenizers
        folder: holds captions.jsonl
        split: which of its photos
        teachers: who says what a photo is
        limit: at most so many photos, drawn evenly
        how: of generation
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Returns:
        "rows": one for each source, then "majority": source, target, and for each measure its
        value, interval, and chance; "protocol"
    """
    how = how or How()
    photos = CaptionPack.read(folder, split).subsample(limit)
    if len(photos) < 2:
        raise ConfigError("chance needs at least two photos")
    known = read_references(photos, pipe, teachers, batch_size=how.batch_size)
    judge = TargetMeasures.of(known, pipe)
    rows = []
    todo = list(cells(pipe, known))
    for number, (source, target) in enumerate(todo):
        if progress is not None:
            progress(f"{' + '.join(source)} -> {target}", number, len(todo))
        found = generate(pipe, known, source, target, how)
        rows.append(_row(" + ".join(source), target, judge, found, draws))
    for target in dict.fromkeys(t for _, t in todo):
        rows.append(_row("majority", target, judge, judge.majority(target), draws, chance=False))
    protocol = {
        "split": split,
        "photos": len(photos),
        "decode": how.decode,
        "steps": how.steps,
        "text_temperature": how.temperature,
        "amounts": "median",
        "seed": how.seed,
        "chance": "the same values against another photo's",
        "majority": "one value for all photos, from the measured photos' own means",
        "interval": f"95% bootstrap, {draws} draws of photos",
        "references": "captions by people; class maps, embeddings and features by teachers",
    }
    return {"rows": rows, "protocol": {**protocol, **(facts or {})}}


def cells(pipe: FourMPipeline, known: References) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every (sources, target) that the model can do and the photos can judge."""
    inputs = roles(pipe.model.config.inputs, pipe)
    outputs = roles(pipe.model.config.outputs, pipe)
    for source in SOURCES:
        if all(role in inputs and role in known.values for role in source):
            for target in outputs:
                if target not in source and target in known.values:
                    yield source, target


def generate(
    pipe: FourMPipeline, known: References, source: Sequence[str], target: str, how: How
) -> Any:
    """One target of every photo from some of its values, a row a photo."""
    entry = roles(pipe.model.config.outputs, pipe)[target]
    make = _texts if target in _SAID else _maps
    parts = []
    for start in range(0, len(known), how.batch_size):
        rows = range(start, min(start + how.batch_size, len(known)))
        batch = pipe.read([known.item(row, source, pipe) for row in rows])
        parts.append(make(pipe, batch, entry, target, how, [how.seed + row for row in rows]))
    if target in _LISTED:
        return [value for part in parts for value in part]
    return np.concatenate(parts)


_LISTED = ("caption", "palette")
_SAID = (*_LISTED, "numbers")


def _maps(
    pipe: FourMPipeline, batch: Any, entry: Modality, target: str, how: How, seeds: list[int]
) -> Any:
    tokenizer = pipe.tokenizers.vq(entry)
    plan = EmbeddingPlan(entry, tokenizer, how.decode, how.steps)
    with torch.inference_mode():
        flat = sample_vectors(pipe.model, batch, plan, seeds, pipe.marks)[:, 0].float().cpu()
    return shaped(flat, tokenizer.config.n_channels, target)


def shaped(flat: torch.Tensor, channels: int, target: str) -> Any:
    """Decoded values as their role is compared: float[B, channels * h * w] -> see `References`."""
    if target == "embedding":
        return flat.numpy()
    side = round((flat.shape[1] / channels) ** 0.5)
    value = flat.reshape(len(flat), channels, side, side)
    if target == "segmentation":
        return value.argmax(dim=1).numpy()
    if target == "edges":
        return value[:, 0].half().numpy()
    if target == "rgb":
        shown = ((value + 1) / 2).clamp(0, 1) * 255
        return shown.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return value.numpy()


def _texts(
    pipe: FourMPipeline, batch: Any, entry: Modality, target: str, how: How, seeds: list[int]
) -> Any:
    plan = Plan.of(Target(entry.name, temperature=how.temperature))
    made = Sampler(pipe.model, marks=pipe.marks).run(batch, plan, seed=seeds)
    written = pipe.write(made, [entry.name])
    texts = [(item[entry.name].text or "").removesuffix(CUT) for item in written]
    if target == "caption":
        return texts
    values = [FORMATS[_FORMAT[target]].parse(text) for text in texts]
    if target == "palette":
        return values
    return np.array([[v.get(n, np.nan) for n in NUMBERS] for v in values], np.float64)


@dataclass(frozen=True)
class TargetMeasures:
    """Compares values with the photos' own."""

    known: References
    cider: Cider
    classes: int

    @classmethod
    def of(cls, known: References, pipe: FourMPipeline) -> TargetMeasures:
        """What all comparisons share."""
        entry = roles(pipe.model.config.outputs, pipe).get("segmentation")
        classes = 0 if entry is None else pipe.tokenizers.vq(entry).config.n_labels or 0
        return cls(known, Cider.of(known.values["caption"]), classes)

    def __call__(self, target: str, found: Any, order: Any = None) -> dict[str, Measured]:
        """Measures of values; `order` names the photo that each is compared with."""
        right = self.known.values[target]
        if order is not None:
            right = [right[i] for i in order] if isinstance(right, list) else right[order]
        return _MEASURES[target](self, found, right)

    def majority(self, target: str) -> Any:
        """One guess for all photos, repeated."""
        right = self.known.values[target]
        guess = _GUESSES[target](self, right)
        if isinstance(right, list):
            return [guess] * len(right)
        return np.broadcast_to(guess, (len(right), *np.shape(guess)))

    def embedding(self, found: Any, right: Any) -> dict[str, Measured]:
        """R@10 and cosine, both centred by the photos' own mean."""
        mean = self.known.values["embedding"].mean(axis=0)
        hits = measures.hits_at(unit(found - mean), unit(right - mean))
        return {"R@10": hits, "cosine": measures.centred_cosines(found, right, mean)}

    def caption(self, found: Any, right: Any) -> dict[str, Measured]:
        """Words and n-grams."""
        return {"words": measures.word_accuracy(found, right), "CIDEr": self.cider(found, right)}

    def numbers(self, found: Any, right: Any) -> dict[str, Measured]:
        """A number that is missing in a generated text counts as the mean."""
        table = self.known.values["numbers"]
        filled = np.where(np.isfinite(found), found, table.mean(axis=0))
        return {"number error": measures.number_errors(filled, right, table.std(axis=0))}

    def features(self, found: Any, right: Any) -> dict[str, Measured]:
        """Cosine at each place, centred by the mean over photos and places."""
        mean = self.known.values["features"].mean(axis=(0, 2, 3))[:, None, None]
        return {"cosine": measures.centred_cosines(found, right, mean)}

    def edges(self, found: Any, right: Any) -> dict[str, Measured]:
        """F1 of the strongest pixels of all maps, so many as `EDGE_SHARE` says."""
        share = min(1.0, EDGE_SHARE * float(self.known.values["edges"].mean()))
        least = np.quantile(np.asarray(found[:, ::2, ::2], np.float32), 1 - share)
        return {"edge F1": measures.edge_f1(found > least, right)}

    def medoid(self, captions: Sequence[Sequence[str]]) -> str:
        """The photo's first caption whose words are in most captions of others."""
        said = [c[0] for c in captions[:200]]
        scores = [measures.word_accuracy([s] * len(said), captions[:200]).value for s in said]
        return said[int(np.argmax(scores))]


def _mean_palette(judge: TargetMeasures, right: Any) -> Any:
    from fourm_lite.data.palette import palette

    colors = np.array([c for p in right for c in p], np.uint8)
    return palette(colors[None])


_MEASURES: dict[str, Callable[[TargetMeasures, Any, Any], dict[str, Measured]]] = {
    "caption": TargetMeasures.caption,
    "embedding": TargetMeasures.embedding,
    "features": TargetMeasures.features,
    "numbers": TargetMeasures.numbers,
    "segmentation": lambda j, a, b: {"mIoU": measures.mean_iou(a, b, j.classes)},
    "edges": TargetMeasures.edges,
    "palette": lambda j, a, b: {"palette distance": measures.palette_distances(a, b)},
    "rgb": lambda j, a, b: {"PSNR": measures.psnr(a, b)},
}
_GUESSES: dict[str, Callable[[TargetMeasures, Any], Any]] = {
    "caption": TargetMeasures.medoid,
    "embedding": lambda j, right: right.mean(axis=0),
    "features": lambda j, right: right.mean(axis=0),
    "numbers": lambda j, right: right.mean(axis=0),
    "segmentation": lambda j, right: np.stack(
        [(right == c).sum(axis=0) for c in range(j.classes)]
    ).argmax(axis=0),
    "edges": lambda j, right: right.mean(axis=0),
    "palette": _mean_palette,
    "rgb": lambda j, right: right.mean(axis=0),
}


def _row(
    source: str, target: str, judge: TargetMeasures, found: Any, draws: int, *, chance: bool = True
) -> dict[str, Any]:
    own = judge(target, found)
    others = [judge(target, found, order) for order in _shuffles(len(judge.known)) if chance]
    return {
        "source": source,
        "target": target,
        "measures": {
            name: {
                "value": round(m.value, 6),
                "interval": m.interval(draws=draws),
                "chance": round(float(np.mean([o[name].value for o in others])), 6)
                if chance
                else None,
                "less_is_better": name in LESS_IS_BETTER,
            }
            for name, m in own.items()
        },
    }


def _shuffles(count: int) -> Iterator[Any]:
    """Orders in which no photo keeps its place: shifts by a quarter, a half, three quarters."""
    for by in sorted({max(1, count * quarter // 4) for quarter in (1, 2, 3)}):
        yield np.roll(np.arange(count), by)
