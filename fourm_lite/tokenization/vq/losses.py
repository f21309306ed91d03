"""Reconstruction losses of tokenizers, by the names of 4M's recipes.

All take a prediction and a target and give one number, the mean over everything that is compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import ConfigError, suggest

Loss = Callable[[Tensor, Tensor], Tensor]


def cosine(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of each channel's map: float[B, C, H, W] both."""
    return (1 - F.cosine_similarity(output.flatten(2), target.flatten(2), dim=-1)).mean()


def cosine_1d(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of the channels at each place: float[B, C, ...] both."""
    return (1 - F.cosine_similarity(output, target, dim=1)).mean()


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a mask's two classes: float[B, 1, H, W] logits and target in {0, 1}.

    A quirk of the original is kept: the probabilities p and 1 - p are taken as *logits*, so that
    the loss lies in 0.31..1.31 and pulls less on what is nearly right.
    """
    p = output.sigmoid()
    scores, wanted = torch.cat([p, 1 - p], dim=1), torch.cat([target, 1 - target], dim=1)
    return F.cross_entropy(scores, wanted.to(scores.dtype))


LOSSES: dict[str, Loss] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "cross_entropy": F.cross_entropy,  # float[B, labels, H, W] against int64[B, H, W]
    "cosine": cosine,
    "cosine_1d": cosine_1d,
    "binary_cross_entropy": binary_cross_entropy,
}


def reconstruction_loss(name: str) -> Loss:
    """The loss of a name.

    Raises:
        ConfigError: there is none
    """
    if name not in LOSSES:
        raise ConfigError(
            f"{name!r} is no tokenizer loss; known are {sorted(LOSSES)}.{suggest(name, LOSSES)}"
        )
    return LOSSES[name]
