"""Fine-tuning a classifier as a task: mixing, class weights, and the best weights so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.pixels import (
    ClassBatch,
    Size,
    center_batches,
    codec_for,
    readable,
    seeded_globals,
)
from fourm_lite.finetune.probe import accuracy, classification_loss
from fourm_lite.io.files import remove_leftovers, write_json
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.labelled import LabelledSet
from fourm_lite.photos.records import UnreadablePhotoError, tell_skipped
from fourm_lite.training.loop import Losses

RECORD = "best.json"


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

    def validate(self, step: int) -> dict[str, float]:
        """Accuracy and loss on the validation photos; keeps the weights where they are the best.

        Raises:
            EarlyStop: the last `patience` validations brought nothing
        """
        logits, labels = self._predicted(), self.val.labels
        metrics = {
            "accuracy": accuracy(logits, labels),
            "loss": float(classification_loss(logits, labels)),
        }
        # A run that was killed before its checkpoint comes by this step a second time.
        before = [(at, value) for at, value in Validations.read(self.keep).seen if at < step]
        record = Validations((*before, (step, metrics["accuracy"])))
        if record.best_at == step:
            self.write(self.keep)
        record.write(self.keep)
        if self.patience and record.since_best >= self.patience:
            since = f"{record.since_best} validations"
            raise EarlyStop(f"no better since step {record.best_at}, {since}")
        return metrics

    def _predicted(self) -> Tensor:
        """Logits of the validation photos, less those that have become unreadable."""
        try:
            return predict(self.model, self.val, self.size, self.batch_size)
        except UnreadablePhotoError:
            known, self.val = self.val, readable(self.val, codec_for(self.model))
            lost = self.val.skipped[len(known.skipped) :]
            tell_skipped([Skipped(skip.id, skip.why) for skip in lost], "the photos")
            if len(lost) > max(1, len(known) // 20):
                raise
            return predict(self.model, self.val, self.size, self.batch_size)

    def write(self, folder: Path) -> None:
        """Writes the model for use."""
        writer = self.save_best or self.model.save
        writer(folder)

    def save(self, folder: Path) -> None:
        """Writes the last weights for use."""
        self.write(folder)


@dataclass(frozen=True)
class Validations:
    """What validations found, beside the weights that did best.

    Units:
        seen: steps and their accuracies, in order
    """

    seen: tuple[tuple[int, float], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Validations:
        """Those of a run; none where it has not validated yet.

        Raises:
            FourMError: the file is damaged
        """
        path = folder / RECORD
        if not path.is_file():
            return cls()
        try:
            # Accuracies alone, as earlier versions wrote them: a validation's number is its step,
            # which is in order and before all steps that come
            rows = enumerate(read_json_object(path)["seen"], start=1)
            pairs = (row if isinstance(row, list) else (number, row) for number, row in rows)
            return cls(tuple((int(step), float(accuracy)) for step, accuracy in pairs))
        except (FourMError, KeyError, TypeError, ValueError) as error:
            raise FourMError(
                f"{path} is damaged ({error}); start afresh in another folder"
            ) from error

    def write(self, folder: Path) -> None:
        """Writes them into the folder of the best weights."""
        remove_leftovers(folder)
        write_json(folder / RECORD, {"seen": self.seen, "best": self.best, "at": self.best_at})

    @property
    def best(self) -> float:
        """The highest accuracy; 0 without any."""
        return max((accuracy for _, accuracy in self.seen), default=0.0)

    @property
    def best_at(self) -> int:
        """The first step with the highest accuracy."""
        return next((step for step, accuracy in self.seen if accuracy == self.best), 0)

    @property
    def since_best(self) -> int:
        """Validations after the best one."""
        return sum(step > self.best_at for step, _ in self.seen)


@torch.inference_mode()
def predict(model: FMViT, data: LabelledSet, size: Size, batch_size: int = 32) -> Tensor:
    """Logits of the middles of photos, float32[N, K]."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    out = [
        model(images.to(device)).float().cpu()
        for images in center_batches(data, size, batch_size, codec_for(model))
    ]
    model.train(training)
    return torch.cat(out)
