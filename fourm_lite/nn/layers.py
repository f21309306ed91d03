"""Layers: a linear map by the fastest float32 product for its shape, how one is drawn, a norm.

Unusual: torch multiplies with MKL, which is slower than it need be in two places. With a few rows,
as in decoding a text, it copies the weights into another layout; written as `W x^T` it does not.
On CPUs with AVX-512 that are not Intel's, MKL keeps to AVX2 and oneDNN's product is ahead, for one
row and for many; where the CPU has AVX2 alone, MKL's is ahead. Both are measured in
docs/performance.md. The choice depends on the machine and on the number of rows alone, so a call
gives the same bits every time.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 6


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` for a linear layer; anything else that stands in its place is called as it is.

    Shapes:
        x: float[..., D_in]; returns float[..., D_out]
    """
    if type(layer) is not nn.Linear or not _plain_inference(x, layer.weight):
        return layer(x)
    rows = x.numel() // x.shape[-1]
    if 1 < rows <= FEW_ROWS:
        return _few(layer, x)
    if rows and prefers_onednn():
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
        return y
    return layer(x)


@functools.cache
def prefers_onednn() -> bool:
    """Whether this torch has both libraries and the CPU is one on which MKL holds back."""
    both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    held = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and not _by_intel()
    return both and hasattr(torch.ops.mkldnn, "_linear_pointwise") and held


def _by_intel() -> bool:
    try:
        named = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        named = platform.processor()
    return "GenuineIntel" in named


def _few(layer: nn.Linear, x: Tensor) -> Tensor:
    turned = torch.mm(layer.weight, x.flatten(0, -2).t()).t()
    rows = turned[:, None].contiguous()[:, 0]  # torch copies a narrow matrix slowly, three axes not
    if layer.bias is not None:
        rows += layer.bias
    return rows.view(*x.shape[:-1], layer.out_features)


def _plain_inference(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    plain = x.dtype == weight.dtype == torch.float32 and weight.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu")


def draw_linear(module: nn.Module) -> None:
    """Draws the weights of every linear map inside of a module (Xavier), biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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
