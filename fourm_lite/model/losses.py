"""Training losses of the masked model: a mean over modalities, or over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.model.fourm import Prediction

LossKind = Literal["mod", "token"]
Weighting = Literal["tokens", "logits"]


def pretraining_loss(
    predictions: Mapping[str, Prediction],
    kind: LossKind = "mod",
    *,
    count_absent: bool = False,
    weigh_by: Weighting = "tokens",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of a batch, and of each modality.

    "mod" is the mean of the modalities' means, "token" the mean over all tokens. The original
    counts
    modalities without targets in the first (`count_absent=True`) and weighs the second by tokens
    times vocabulary (`weigh_by="logits"`); see docs/differences.md.

    Shapes:
        returns: float[] and a float[] for each modality; 0 for one without targets
    """
    losses: dict[str, Tensor] = {}
    weights: list[float] = []
    for name, p in predictions.items():
        n = p.ids.shape[0]
        losses[name] = F.cross_entropy(p.logits.float(), p.ids) if n else p.logits.float().sum()
        weights.append(_weight(kind, p, n, count_absent, weigh_by))
    total = sum(weights)
    if not losses or total == 0:
        return torch.stack(list(losses.values())).sum(), losses
    stacked = torch.stack(list(losses.values()))
    factors = stacked.new_tensor(weights)
    return (stacked * factors).sum() / total, losses


def _weight(kind: str, p: Prediction, n: int, count_absent: bool, weigh_by: str) -> float:
    if kind == "mod":
        return 1.0 if n or count_absent else 0.0
    if kind == "token":
        return float(p.logits.numel() if weigh_by == "logits" else n)
    raise ConfigError(f"loss kind must be 'mod' or 'token', got {kind!r}")
