"""Layer normalisation with an optional bias, in 4M's state-dict form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, eps 1e-6.

    Without a bias a zero *buffer* named `bias` stays in the state dict, as in published
    checkpoints.
    """

    bias: Tensor

    def __init__(self, dim: int, *, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises float[..., dim]."""
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.dim}, bias={isinstance(self.bias, nn.Parameter)}"
