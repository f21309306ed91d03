"""Fine-tuning a classifier as a task: mixing, class weights, and the best weights so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_json
from fourm_lite.training.labelled import LabelledSet
from fourm_lite.training.loop import Losses
from fourm_lite.training.photos import ClassBatch, Size, centre_batches, seeded_globals
from fourm_lite.training.probe import accuracy, classification_loss


class EarlyStop(Exception):
    """Raised by a task whose validation figure has not risen for a while."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of photos and their labels, by timm's Mixup.

    Units:
        mixup, cutmix: alpha of the beta distribution, 0 for none
        prob: share of the batches that are mixed
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class FinetuneTask:
    """Learns labels, watches validation photos, keeps the best weights under `keep`.

    Units:
        weights: float[K] or None, how much a class counts
        patience: validations without a rise before EarlyStop, 0 for never
    """

    model: FMViT
    val: LabelledSet
    size: Size
    keep: Path
    smoothing: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)
    weights: Tensor | None = None
    patience: int = 0
    batch_size: int = 32
    save_best: Callable[[Path], Any] | None = None

    def step(self, model: nn.Module, batch: ClassBatch, generator: torch.Generator) -> Losses:
        """The loss of one batch."""
        pixels, labels = batch.pixels, batch.labels
        weights = None if self.weights is None else self.weights.to(labels.device)
        if self.mix.is_on and len(batch) > 1:
            pixels, labels = self._mixed(batch, generator)
            logits = model(pixels).float()
            loss = self._soft_loss(logits, labels, weights)
        else:
            logits = model(pixels).float()
            loss = classification_loss(logits, labels, weights, self.smoothing)
        right = accuracy(logits.detach(), batch.labels[: len(logits)])
        return Losses(loss, {"accuracy": loss.new_tensor(right)}, len(logits))

    def _mixed(self, batch: ClassBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        from timm.data.mixup import Mixup

        if batch.labels.is_floating_point():
            raise ConfigError("mixup and cutmix are for one label a photo; turn them off")
        mix = Mixup(
            self.mix.mixup, self.mix.cutmix, prob=self.mix.prob, mode="batch",
            label_smoothing=self.smoothing, num_classes=self.model.num_classes,
        )  # fmt: skip
        even = len(batch) // 2 * 2  # timm mixes pairs
        seed = int(torch.randint(2**31, (), generator=generator))
        with seeded_globals(seed):
            return mix(batch.pixels[:even].clone(), batch.labels[:even])

    @staticmethod
    def _soft_loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if weights is not None:
            targets = targets * weights
        return F.cross_entropy(logits, targets.to(logits.dtype))

    def validate(self) -> dict[str, float]:
        """Accuracy and loss on the validation photos; keeps the weights where they are the best.

        Raises:
            EarlyStop: the last `patience` validations brought nothing
        """
        logits, labels = predict(self.model, self.val, self.size, self.batch_size), self.val.labels
        figures = {
            "accuracy": accuracy(logits, labels),
            "loss": float(classification_loss(logits, labels)),
        }
        book = self._book()
        seen = [*book["seen"], figures["accuracy"]]
        if figures["accuracy"] > book["best"]:
            book = {"best": figures["accuracy"], "at": len(seen)}
            self.write(self.keep)
        book["seen"] = seen
        write_json(self.keep / "best.json", book, indent=None)
        if self.patience and len(seen) - book["at"] >= self.patience:
            raise EarlyStop(f"no better since validation {book['at']} of {len(seen)}")
        return figures

    def _book(self) -> dict[str, Any]:
        path = self.keep / "best.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        return {"best": -1.0, "at": 0, "seen": []}

    def write(self, folder: Path) -> None:
        """Writes the model for use."""
        writer = self.save_best or self.model.save
        writer(folder)

    def save(self, folder: Path) -> None:
        """Writes the last weights for use."""
        self.write(folder)


@torch.inference_mode()
def predict(model: nn.Module, data: LabelledSet, size: Size, batch_size: int = 32) -> Tensor:
    """Logits of the middles of photos, float32[N, K]."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    out = [
        model(images.to(device)).float().cpu() for images in centre_batches(data, size, batch_size)
    ]
    model.train(training)
    return torch.cat(out)
