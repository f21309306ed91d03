"""Modules of AION-1's codec networks, of the sizes that their weights have; names are theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.errors import CheckpointError
from fourm_lite.nn.device import without_storage

Weights = Mapping[str, Tensor]
M = TypeVar("M", bound=nn.Module)


def conv2d(
    weights: Weights, place: str, *, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution of the shape that the weights have; padded to keep the size by default."""
    outs, ins, kernel, _ = _shape(weights, place)
    pad = kernel // 2 if padding is None else padding
    return nn.Conv2d(ins, outs, kernel, stride, pad)


def grow2d(weights: Weights, place: str, *, stride: int = 1) -> nn.ConvTranspose2d:
    """A transposed convolution padded by 1."""
    ins, outs, kernel, _ = _shape(weights, place)
    return nn.ConvTranspose2d(ins, outs, kernel, stride, 1)


def linear(weights: Weights, place: str) -> nn.Linear:
    """A linear map of the shape that the weights have."""
    outs, ins = _shape(weights, place)
    return nn.Linear(ins, outs)


def _shape(weights: Weights, place: str) -> torch.Size:
    if f"{place}.weight" not in weights:
        raise CheckpointError(f"the codec lacks the weight '{place}.weight'")
    return weights[f"{place}.weight"].shape


class Conv(nn.Module):
    """A convolution under the name `conv`."""

    def __init__(self, weights: Weights, place: str, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv2d(weights, f"{place}.conv", stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        made: Tensor = self.conv(x)
        return made


class Gate(nn.Module):
    """A gate a channel from a weighted mean of the pixels; the weights are learned."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.to_k = conv2d(weights, f"{place}.to_k")
        self.net = nn.Sequential(
            conv2d(weights, f"{place}.net.0"), nn.LeakyReLU(0.1), conv2d(weights, f"{place}.net.2")
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        share = rearrange(self.to_k(x), "b 1 h w -> b 1 (h w)").softmax(-1)
        seen = (rearrange(x, "b c h w -> b c (h w)") * share).sum(-1)
        return torch.sigmoid(self.net(seen[..., None, None])) * x


class Unit(nn.Module):
    """A gated residual of two convolutions."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Conv(weights, f"{place}.net.0"), nn.ELU(), conv2d(weights, f"{place}.net.2"), nn.ELU(),
            Gate(weights, f"{place}.net.4"),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return x + self.net(x)


class Double(nn.Module):
    """Twice the edge: a 1x1 convolution, SiLU, and pixels out of channels."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.net = nn.Sequential(conv2d(weights, f"{place}.net.0"), nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2 H, 2 W]."""
        made: Tensor = self.net(x)
        return made


class ChannelNorm(nn.Module):
    """LayerNorm over channels, the second part of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.add_module("1", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return over_channels(self.get_submodule("1"), x)


def over_channels(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a module of the last axis to the channels of [B, C, ...]."""
    return rearrange(module(rearrange(x, "b c ... -> b ... c")), "b ... c -> b c ...")


class ConvNeXt(nn.Module):
    """A block of ConvNeXt V2 along one axis."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        width = _shape(weights, f"{place}.dwconv")[0]
        hidden = _shape(weights, f"{place}.pwconv1")[0]
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = linear(weights, f"{place}.pwconv1")
        self.grn = ResponseNorm(hidden)
        self.pwconv2 = linear(weights, f"{place}.pwconv2")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> the same."""
        y = rearrange(self.dwconv(x), "b c l -> b l c")
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(y)))))
        return x + rearrange(y, "b l c -> b c l")


class ResponseNorm(nn.Module):
    """Global response normalisation over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> the same."""
        strength = x.norm(dim=1, keepdim=True)
        share = strength / (strength.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class Residuals(nn.Module):
    """Residual layers with running norms, one after the other."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.net = nn.ModuleList(Residual(weights, p) for p in numbered(weights, f"{place}.net"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        for layer in self.net:
            x = layer(x)
        return x


class Residual(nn.Module):
    """x + conv1(relu(norm(conv3(relu x))))."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        width = _shape(weights, f"{place}.net.2")[0]
        self.net = nn.Sequential(
            nn.ReLU(), conv2d(weights, f"{place}.net.1"), nn.BatchNorm2d(width), nn.ReLU(),
            conv2d(weights, f"{place}.net.4"),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return x + self.net(x)


def numbered(weights: Weights, place: str) -> list[str]:
    """The places `place.0`, `place.1`, ... that hold weights, in order."""
    depth = len(place.split("."))
    found = {key.split(".")[depth] for key in weights if key.startswith(f"{place}.")}
    return [f"{place}.{number}" for number in sorted(found, key=int)]


def built(make: Callable[[], M], weights: Weights, what: str, *, unused: Sequence[str]) -> M:
    """The module with its weights, every one of them used but those whose names begin or end so.

    Raises:
        CheckpointError: a weight is missing, left over or has another shape
    """
    with without_storage():
        module = make()
    ends = tuple(unused)
    used = {k: v for k, v in weights.items() if not (k.startswith(ends) or k.endswith(ends))}
    try:
        module.load_state_dict(used, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the {what} does not fit its weights: {error}") from error
    return module.eval()
