"""Train-time branches to the one convolution that they are: what Apple calls reparameterisation.

A file holds either form. Folding is linear algebra on frozen BatchNorms and moves a vector by about
5e-7; what is folded is smaller and faster, so networks here know the folded form only.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from fourm_lite.embedders.pth import Weights

EPS = 1e-5
Kernel = tuple[Tensor, Tensor]
FOLDED = (
    r"\.(rbr_|token_mixer\.(mixer|norm|layer_scale)|lkb_origin|small_conv|pe\.|bn\.|conv\.conv)"
)


def fold(weights: Weights) -> Weights:
    """The weights in folded form; those of a folded file are as they were."""
    found = {k: v for k, v in weights.items() if not re.search(FOLDED, k)}
    for place in _places(weights, r"(.*token_mixer)\.mixer\."):
        found |= _named(f"{place}.reparam_conv", _token_mixer(weights, place))
    for place in _places(weights, r"((?!.*token_mixer).*)\.rbr_"):
        found |= _named(f"{place}.reparam_conv", _branches(weights, place))
    for place in _places(weights, r"(.*)\.lkb_origin\."):
        large = _conv_norm(weights, f"{place}.lkb_origin")
        small = _conv_norm(weights, f"{place}.small_conv")
        found |= _named(f"{place}.lkb_reparam", _sum([large, _widened(small, large[0])]))
    for place in _places(weights, r"(.*)\.pe\."):
        kernel = weights[f"{place}.pe.weight"], weights[f"{place}.pe.bias"]
        found |= _named(f"{place}.reparam_conv", _sum([kernel, _identity(kernel[0])]))
    for place in _places(weights, r"(.*convffn)\.conv\.conv\."):
        found |= _named(f"{place}.conv", _conv_norm(weights, f"{place}.conv"))
    return found


def _places(weights: Weights, pattern: str) -> list[str]:
    return sorted({m[1] for key in weights if (m := re.match(pattern, key))})


def _named(place: str, kernel: Kernel) -> Weights:
    return {f"{place}.weight": kernel[0], f"{place}.bias": kernel[1]}


def _norm(weights: Weights, place: str) -> Kernel:
    """A frozen BatchNorm as a factor and a shift."""
    deviation = (weights[f"{place}.running_var"] + EPS).sqrt()
    factor = weights[f"{place}.weight"] / deviation
    return factor, weights[f"{place}.bias"] - weights[f"{place}.running_mean"] * factor


def _conv_norm(weights: Weights, place: str) -> Kernel:
    factor, shift = _norm(weights, f"{place}.bn")
    return weights[f"{place}.conv.weight"] * factor[:, None, None, None], shift


def _identity(like: Tensor) -> Kernel:
    """A kernel of the same shape that gives its input back."""
    kernel = torch.zeros_like(like)
    outputs, per_group, rows, columns = like.shape
    channels = torch.arange(outputs)
    kernel[channels, channels % per_group, rows // 2, columns // 2] = 1
    return kernel, torch.zeros(outputs)


def _widened(kernel: Kernel, like: Tensor) -> Kernel:
    rows, columns = (
        (large - small) // 2
        for large, small in zip(like.shape[2:], kernel[0].shape[2:], strict=True)
    )
    return F.pad(kernel[0], (columns, columns, rows, rows)), kernel[1]


def _sum(kernels: list[Kernel]) -> Kernel:
    return sum(k for k, _ in kernels), sum(b for _, b in kernels)  # type: ignore[return-value]


def _branches(weights: Weights, place: str) -> Kernel:
    """MobileOne: convolutions, a 1x1 one and the input itself, each normalised, added."""
    convs = _places(weights, rf"({re.escape(place)}\.rbr_conv\.\d+)\.")
    kernels = [_conv_norm(weights, conv) for conv in convs]
    if f"{place}.rbr_scale.conv.weight" in weights:
        scale = _conv_norm(weights, f"{place}.rbr_scale")
        kernels.append(_widened(scale, kernels[0][0]) if kernels else scale)
    if f"{place}.rbr_skip.weight" in weights:
        kernels.append(_normed_identity(weights, f"{place}.rbr_skip", kernels[0][0]))
    return _sum(kernels)


def _normed_identity(weights: Weights, place: str, like: Tensor) -> Kernel:
    factor, shift = _norm(weights, place)
    return _identity(like)[0] * factor[:, None, None, None], shift


def _token_mixer(weights: Weights, place: str) -> Kernel:
    """RepMixer: x + layer_scale * (mixer(x) - norm(x))."""
    kernel, bias = _branches(weights, f"{place}.mixer")
    other, shift = _normed_identity(weights, f"{place}.norm.rbr_skip", kernel)
    scale = weights[f"{place}.layer_scale"]
    mixed = scale[:, None] * (kernel - other), scale.flatten() * (bias - shift)
    return _sum([mixed, _identity(kernel)])
