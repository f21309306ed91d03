"""Blocks of MobileCLIP's towers in folded form, and what folds a file; names are Apple's.

A file holds train-time branches or the one convolution that they are: Apple calls folding them
reparameterisation. It is linear algebra on frozen BatchNorms and moves a vector by about 5e-7; what
is folded is smaller and faster, so networks here know the folded form only.
"""

from __future__ import annotations

import re

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.embedders.pth import Weights


def conv_of(
    weights: Weights, place: str, *, stride: int = 1, inputs: int | None = None
) -> nn.Conv2d:
    """A convolution of the shape that the weights have; depthwise where they have one input.

    `inputs`: channels before it, where the weights alone do not say whether it is depthwise.
    """
    outputs, per_group, rows, columns = weights[f"{place}.weight"].shape
    depthwise = per_group == 1 and rows * columns > 1
    channels = inputs or (outputs if depthwise else per_group)
    return nn.Conv2d(
        channels,
        outputs,
        (rows, columns),
        stride,
        (rows // 2, columns // 2),
        groups=channels // per_group,
        bias=f"{place}.bias" in weights,
    )


class SqueezeExcite(nn.Module):
    """A gate a channel from the picture's mean; `names` are its two 1x1 convolutions."""

    def __init__(self, weights: Weights, place: str, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, conv_of(weights, f"{place}.{name}"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        first, second = (self.get_submodule(name) for name in self.names)
        return x * torch.sigmoid(second(F.relu(first(x.mean((2, 3), keepdim=True)))))


def _gate(weights: Weights, place: str, names: tuple[str, str]) -> nn.Module:
    if f"{place}.{names[0]}.weight" not in weights:
        return nn.Identity()
    return SqueezeExcite(weights, place, names)


class MobileOne(nn.Module):
    """One convolution, perhaps a gate, GELU."""

    def __init__(self, weights: Weights, place: str, stride: int = 1, inputs: int | None = None):
        super().__init__()
        self.reparam_conv = conv_of(weights, f"{place}.reparam_conv", stride=stride, inputs=inputs)
        self.se = _gate(weights, f"{place}.se", ("reduce", "expand"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return F.gelu(self.se(self.reparam_conv(x)))


class Mixer(nn.Module):
    """A depthwise convolution that holds its own residual: RepMixer, RepCPE."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.reparam_conv = conv_of(weights, f"{place}.reparam_conv")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        mixed: Tensor = self.reparam_conv(x)
        return mixed


class ConvFFN(nn.Module):
    """A depthwise convolution, then an MLP over channels."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = (
            conv_of(weights, f"{place}.{name}") for name in ("conv", "fc1", "fc2")
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        made: Tensor = self.fc2(F.gelu(self.fc1(self.conv(x))))
        return made


class MixerBlock(nn.Module):
    """A mixer, then the MLP added to it."""

    def __init__(self, weights: Weights, place: str) -> None:
        super().__init__()
        self.token_mixer = Mixer(weights, f"{place}.token_mixer")
        self.convffn = ConvFFN(weights, f"{place}.convffn")
        self.layer_scale = nn.Parameter(torch.empty_like(weights[f"{place}.layer_scale"]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)


class PixelAttention(nn.Module):
    """Attention over pixels; queries, keys and values have no bias."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.num_heads = width // head
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        height = x.shape[2]
        qkv = self.qkv(rearrange(x, "b c h w -> b (h w) c"))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        read = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return rearrange(self.proj(read), "b (h w) c -> b c h w", h=height)


class AttentionBlock(nn.Module):
    """Normalised attention and the MLP, both added with a scale a channel."""

    def __init__(self, weights: Weights, place: str, head: int) -> None:
        super().__init__()
        width = weights[f"{place}.norm.weight"].shape[0]
        self.norm = nn.BatchNorm2d(width)
        self.token_mixer = PixelAttention(width, head)
        self.convffn = ConvFFN(weights, f"{place}.convffn")
        self.layer_scale_1, self.layer_scale_2 = (
            nn.Parameter(torch.empty_like(weights[f"{place}.layer_scale_{i}"])) for i in (1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = x + self.layer_scale_1 * self.token_mixer(self.norm(x))
        return x + self.layer_scale_2 * self.convffn(x)


class LargeKernel(nn.Module):
    """A convolution of stride 2 with a gate and GELU."""

    def __init__(self, weights: Weights, place: str, inputs: int) -> None:
        super().__init__()
        self.lkb_reparam = conv_of(weights, f"{place}.lkb_reparam", stride=2, inputs=inputs)
        self.se = _gate(weights, f"{place}.se", ("fc1", "fc2"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]."""
        return F.gelu(self.se(self.lkb_reparam(x)))


class Downsample(nn.Module):
    """Half the edge, more channels."""

    def __init__(self, weights: Weights, place: str, inputs: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernel(weights, f"{place}.proj.0", inputs), MobileOne(weights, f"{place}.proj.1")
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]."""
        made: Tensor = self.proj(x)
        return made


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP of the text towers and the ViT."""

    def __init__(self, width: int, hidden: int, head: int, eps: float) -> None:
        super().__init__()
        self.pre_norm_mha = nn.Sequential(
            nn.LayerNorm(width, eps=eps), FusedAttention(width, width // head)
        )
        self.pre_norm_ffn = nn.Sequential(
            nn.LayerNorm(width, eps=eps), nn.Linear(width, hidden), nn.GELU(), nn.Identity(),
            nn.Linear(hidden, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.pre_norm_mha(x)
        return x + self.pre_norm_ffn(x)


class FusedAttention(nn.Module):
    """Attention with one matrix for queries, keys and values; causal where it is told."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = False
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = rearrange(
            self.qkv_proj(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        made: Tensor = self.out_proj(rearrange(read, "b h n d -> b n (h d)"))
        return made


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
