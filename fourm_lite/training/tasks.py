"""What a recipe trains, a tokenizer or the masked model, and quick metrics of it while it trains.

These choose a checkpoint and a recipe: does search work, and does the model know the teacher. What
is reported of a finished model comes from `fourm-lite evaluate`, which knows protocols, galleries
and intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.data.loader import MaskedBatch
from fourm_lite.data.shards import normalized
from fourm_lite.errors import ConfigError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM, Prediction
from fourm_lite.model.likelihood import grid_log_probs
from fourm_lite.photos.records import Record
from fourm_lite.progress import batches
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer
from fourm_lite.training.distill import Guess, grid_of, unexplained
from fourm_lite.training.loop import Losses
from fourm_lite.training.losses import (
    LossKind,
    directions,
    embedding_contrast,
    embedding_regression,
    expected_directions,
    likelihood_contrast,
    pretraining_loss,
    reconstruction_loss,
    soft_cross_entropy,
    whole_rows,
)

Metrics = Callable[[], dict[str, float]]


@dataclass
class TokenizerTask:
    """Reconstruction through the codebook.

    Units:
        loss: a name of `training.losses.LOSSES`
        metrics: measures the model on validation data
    """

    model: VQTokenizer
    loss: str = "mse"
    metrics: Metrics = dict

    def step(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> Losses:
        """Loss of the reconstruction and of the quantizer."""
        out = model(batch, generator=generator)
        main = reconstruction_loss(self.loss)(out.output.float(), out.target)
        parts = {"reconstruction": main, "quantizer": out.quantized.loss}
        used = out.quantized.tokens.unique().numel() / self.model.vocab_size
        parts["codes_used"] = main.new_tensor(used)
        return Losses(main + out.quantized.loss, parts, len(batch))

    def validate(self, step: int) -> dict[str, float]:
        """Metrics on the validation data."""
        return self.metrics()

    def save(self, folder: Path) -> None:
        """Writes the tokenizer."""
        self.model.save(folder)


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """The loss and its additions.

    Units:
        kind: "mod" is the mean over modalities, "token" the mean over tokens
        soft: modality -> temperature of soft targets (`losses.soft_targets`)
        contrast: modality -> weight of `likelihood_contrast`; match: of `embedding_contrast`
        regress: modality -> weight of `embedding_regression`, in batches that hold the label of its
            tokenizer's name
        distill: label of a teacher's feature map or vector -> weight; its size is read from the
            labels. A weight of 0 leaves it out, where a base has it
        distill_after: label of a map -> the encoder block that is to know it, from 1; without an
            entry it is asked of the encoder's output
    """

    kind: LossKind = "mod"
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


def label_of(entry: Modality) -> str:
    """The label whose vectors a modality's tokens hold: the name of its tokenizer."""
    place = Path(entry.tokenizer or "")
    return place.parent.name if place.name in ("final", "weights") else place.name


@dataclass
class PretrainTask:
    """Masked prediction of any modality from any others.

    Units:
        losses: with `losses.distill` the model is a `DistilledFourM`
        soft: modality -> soft targets float[L, V, V], of those in `losses.soft`
        tokenizers: of the modalities in `losses.match` and `losses.regress`
        extra: the config's "extra" entry when saved: data, licence, steps
    """

    model: FourM
    losses: LossRecipe = field(default_factory=LossRecipe)
    metrics: Metrics = dict
    extra: Mapping[str, Any] = field(default_factory=dict)
    soft: Mapping[str, Tensor] = field(default_factory=dict)
    tokenizers: Mapping[str, VQTokenizer] = field(default_factory=dict)

    def step(self, model: nn.Module, batch: MaskedBatch, generator: torch.Generator) -> Losses:
        """Cross-entropy of the targets."""
        maps = {n: v for n, v in batch.labels.items() if n in self.losses.distill}
        sizes = (batch.input_budget, batch.target_budget)
        guesses: Mapping[str, Guess] = {}
        if self.losses.distill:
            grids = {n: grid_of(v) for n, v in maps.items()}
            predictions, guesses = model(batch.batch, *sizes, maps=grids)
        else:
            predictions = model(batch.batch, *sizes)
        loss, parts = pretraining_loss(predictions, self.losses.kind)
        shown = {f"loss/{n}": v for n, v in parts.items() if len(predictions[n].ids)}
        further, more = self._further(predictions, batch, parts)
        for name, guess in guesses.items():
            more[f"distill/{name}"] = unexplained(guess, maps[name])
            further = further + self.losses.distill[name] * more[f"distill/{name}"]
        return Losses(loss + further, {**shown, **more}, batch.batch.size)

    def _further(
        self, predictions: Mapping[str, Prediction], batch: MaskedBatch, parts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added for modalities that are asked for whole: soft targets, contrast, cosine."""
        total, shown = torch.zeros(()), {}
        size = batch.batch.size
        present = sum(1 for p in predictions.values() if len(p.ids))
        known = {*self.soft, *self.losses.contrast, *self.losses.match, *self.losses.regress}
        for name in sorted(known & set(predictions)):
            prediction = predictions[name]
            length = self.model.modality(name).max_tokens
            if not whole_rows(prediction, size, length):
                continue
            total = total.to(prediction.logits.device)
            if name in self.soft:
                soft = soft_cross_entropy(prediction, self.soft[name].to(total.device))
                total = total + (soft - parts[name]) / present  # in place of the one-hot loss
                shown[f"soft/{name}"] = soft
            if name in self.losses.contrast:
                pair = likelihood_contrast(
                    prediction, length, temperature=self.losses.contrast_temperature
                )
                total = total + self.losses.contrast[name] * pair
                shown[f"contrast/{name}"] = pair
            more, told = self._of_embedding(name, prediction, batch, length)
            total = total + more
            shown |= told
        return total, shown

    def _of_embedding(
        self, name: str, prediction: Prediction, batch: MaskedBatch, length: int
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The losses on the expected embedding, which is decoded once."""
        vectors = batch.labels.get(label_of(self.model.modality(name)))
        match = self.losses.match.get(name, 0.0)
        regress = self.losses.regress.get(name, 0.0) if vectors is not None else 0.0
        if not match and not regress:
            return 0.0, {}
        tokenizer = self.tokenizers[name].to(prediction.logits.device)
        found = expected_directions(prediction, tokenizer, length)
        shown = {}
        if match:
            ids = prediction.ids.unflatten(0, (-1, length))
            shown[f"match/{name}"] = embedding_contrast(
                found, tokenizer, ids, temperature=self.losses.match_temperature
            )
        if regress and vectors is not None:
            shown[f"regress/{name}"] = embedding_regression(found, tokenizer, vectors)
        weights = {f"match/{name}": match, f"regress/{name}": regress}
        return sum(weights[k] * v for k, v in shown.items()), shown

    def validate(self, step: int) -> dict[str, float]:
        """Metrics on the validation data."""
        return self.metrics()

    def save(self, folder: Path) -> None:
        """Writes the model."""
        self.model.save(folder, extra=self.extra or None)


@dataclass(frozen=True, kw_only=True)
class ValRecipe:
    """Photos with captions and a teacher's embeddings that training does not see.

    Units:
        captions, split: as in the data; labels: a folder of `pseudolabel`; label: its embeddings
        target: the modality of that embedding; pixels, text: what it is predicted from
        batch_size: items a pass
    """

    captions: Path
    labels: Path
    label: str
    target: str
    split: str = "val"
    pixels: str = "rgb@224"
    text: str = "caption"
    batch_size: int = 128


def ranks(scores: Tensor, owner: Tensor) -> Tensor:
    """Place of each query's own item, from 1: float[Q, N], int64[Q] -> int64[Q]."""
    return (scores > scores.gather(1, owner[:, None])).sum(dim=1) + 1


def recall(rank: Tensor) -> dict[str, float]:
    """R@1, R@5, R@10 and the median of ranks int64[Q]."""
    found = {f"R@{k}": float((rank <= k).float().mean()) for k in (1, 5, 10)}
    return {**found, "median_rank": float(rank.float().median())}


@dataclass(frozen=True)
class SearchMetrics:
    """Recall of captions among the teacher's embeddings, and the cosine that photos reach.

    Shapes:
        gallery: float[N, E], the teacher's embeddings of the N records
    """

    model: FourM
    tokenizer: VQTokenizer
    text: TextTokenizer
    records: Sequence[Record]
    gallery: Tensor
    recipe: ValRecipe

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """R@1, R@5, R@10 and the median rank of all captions; mean centred cosine of photos."""
        device = self.model.device
        self.tokenizer.to(device)
        gallery = self._centered(self.gallery.to(device))
        owner = torch.tensor([i for i, r in enumerate(self.records) for _ in r.captions])
        said = self._directions(self._texts([c for r in self.records for c in r.captions]))
        seen = self._directions(self._photos())
        metrics = recall(ranks(said @ gallery.T, owner.to(device)))
        own = ranks(said @ seen.T, owner.to(device))
        metrics["pixel_gallery_R@10"] = float((own <= 10).float().mean())
        metrics["pixels_cosine"] = float((seen * gallery).sum(dim=1).mean())
        return metrics

    def _centered(self, vectors: Tensor) -> Tensor:
        mean = self.tokenizer.input_mean if self.tokenizer.config.mean is not None else 0.0
        return F.normalize(vectors.float() - mean, dim=1)

    def _directions(self, batches: Sequence[TokenBatch]) -> Tensor:
        rows = []
        for batch in batches:
            moved = batch.to(self.model.device)
            context = self.model.encode(moved).context
            probs = grid_log_probs(self.model, self.recipe.target, context, moved.size).exp()
            rows.append(directions(self.tokenizer, self.tokenizer.expected_latents(probs)))
        return torch.cat(rows)

    def _texts(self, texts: Sequence[str]) -> list[TokenBatch]:
        limit = self.model.modality(self.recipe.text).max_tokens
        out = []
        for part in batches(texts, self.recipe.batch_size):
            made = self.text.tokenize(part)
            ids, valid = made.ids[:, :limit], made.valid[:, :limit]
            given = Tokens.given(ids, valid, length=ids.shape[1])
            out.append(TokenBatch({self.recipe.text: given}))
        return out

    def _photos(self) -> list[TokenBatch]:
        entry = self.model.modality(self.recipe.pixels)
        size = entry.image_size or 224
        out = []
        for part in batches(self.records, self.recipe.batch_size):
            pixels = [normalized(r.open_image().resize((size, size))) for r in part]
            given = Tokens.given(torch.stack(pixels), length=entry.max_tokens)
            out.append(TokenBatch({entry.name: given}))
        return out
