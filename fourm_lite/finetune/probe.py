"""The linear probe: features once, then a convex problem that L-BFGS solves.

Features are standardised for the solver; the scale is folded into the weights afterwards, so the
probe is a plain linear map on the model's own features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ShapeError
from fourm_lite.finetune.pixels import Size, center_batches, codec_for
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.io.writing import write_file
from fourm_lite.photos.labelled import LabelledSet
from fourm_lite.progress import Progress

L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Linear:
    """A linear classifier of features.

    Shapes:
        weight: float[K, D]
        bias: float[K]
    """

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits of features: float[N, D] -> float[N, K]."""
        return F.linear(features, self.weight, self.bias)


@torch.inference_mode()
def photo_features(
    model: FMViT,
    data: LabelledSet,
    *,
    size: Size | None = None,
    batch_size: int = 32,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The normed mean of the tokens of every photo, float32[N, D]: what a linear head reads.

    With a `cache` folder, features of the same weights, photos and size are taken from there; a
    file that was changed since is another photo.
    """
    size = size or model.input_size[1:]
    path = None if cache is None else cache / f"features-{_key(model, data, size)}.safetensors"
    if path is not None and path.is_file():
        return load_tensors(path)["features"]
    device = model._first_embedding().mod_emb.device
    out = []
    for images in center_batches(data, size, batch_size, codec_for(model)):
        tokens = model.forward_features(images.to(device)).float()
        out.append(F.layer_norm(tokens.mean(dim=1), tokens.shape[-1:], eps=1e-6).cpu())
        if progress is not None:
            progress(min(len(out) * batch_size, len(data)), len(data))
    features = torch.cat(out)
    if path is not None:
        write_file(path, {"features": features}, metadata=None)
    return features


def _key(model: FMViT, data: LabelledSet, size: Size) -> str:
    digest = hashlib.sha256(f"{data.fingerprint} {size}".encode())
    for photo in data.photos:
        digest.update(_stamp(photo.record.image))
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(("encoder", "register")):
            digest.update(name.encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _stamp(image: Path | bytes) -> bytes:
    """Tells a picture from another under the same name: by size and time of a file, or bytes."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    found = image.stat()
    return f"{found.st_size} {found.st_mtime_ns}\n".encode()


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    l2: float = 1e-2,
    weights: Tensor | None = None,
    steps: int = 100,
) -> Linear:
    """The classifier with the least cross-entropy plus `l2` times the weights' squares.

    Shapes:
        features: float[N, D]
        labels: int64[N] class numbers, or float[N, K] of 0 and 1 (each class on its own)
        weights: float[K] or None: how much a photo of a class counts
    Raises:
        ShapeError: features and labels do not fit each other
    """
    if features.ndim != 2 or len(features) != len(labels) or not len(features):
        raise ShapeError(
            f"expected features float[N, D] and N labels, got {list(features.shape)} and "
            f"{list(labels.shape)}"
        )
    mean = features.mean(dim=0)
    scale = features.std(dim=0, correction=0).clamp_min(1e-6)
    x = ((features - mean) / scale).detach()
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        logits = F.linear(x, weight, bias)
        loss = classification_loss(logits, labels, weights) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    own = weight.detach() / scale
    return Linear(own, bias.detach() - own @ mean, l2)


def classification_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy; of 0 and 1 a class (float labels whose rows do not sum to 1) binary.

    Shapes:
        labels: int64[N], or float[N, K]
        weights: float[K] or None
    """
    if labels.is_floating_point():
        smooth = labels * (1 - smoothing) + 0.5 * smoothing
        return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights)
    return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)


def choose_linear(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    weights: Tensor | None = None,
    candidates: Sequence[float] = L2,
) -> Linear:
    """The probe whose weight penalty does best on validation photos; of equals the strongest."""
    best, top = None, -1.0
    for l2 in sorted(candidates, reverse=True):
        found = fit_linear(*train, num_classes, l2=l2, weights=weights)
        score = accuracy(found(val[0]), val[1])
        if score > top:
            best, top = found, score
    assert best is not None
    return best


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of right answers; with several labels, of right yes-or-no answers a class."""
    if labels.is_floating_point():
        return float(((logits > 0) == (labels > 0.5)).float().mean())
    return float((logits.argmax(dim=-1) == labels).float().mean())


def class_weights(counts: Tensor) -> Tensor:
    """Weights that make every class count alike, 1 on the average photo: int64[K] -> float[K]."""
    present = counts.clamp_min(1).float()
    return counts.sum() / (present * (counts > 0).sum())


def set_linear_head(model: FMViT, linear: Linear) -> None:
    """Gives a model with a linear head the probe: its logits are then the probe's."""
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.copy_(linear.weight)
        model.head.bias.copy_(linear.bias)
        for name, parameter in model.fc_norm.named_parameters():
            parameter.fill_(1.0 if name == "weight" else 0.0)
