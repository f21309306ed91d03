"""An FMViT whose blocks have int8 linear maps, the ranges of their inputs taken from a few images.

Before rounding, every channel of a map's input is moved to the middle and scaled, and what makes
the input (a norm, the values of attention, the ungated half of a gated MLP) and the map take over
the inverse: the same function, with channels that share one range well. Each map takes the fastest
form that does not hurt it on the images: one range, a scale for each token, or float32.

Source:
    SmoothQuant (Xiao et al. 2022) for the scales, Outlier Suppression+ (Wei et al. 2023) for the
    middles
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.nn.cpu_linear import Int8Linear, RangedInt8Linear, replace_linear

LIMIT = 0.025


@dataclass(frozen=True)
class Range:
    """What the channels of a map's input lie between, float32[D] each."""

    low: Tensor
    high: Tensor

    def moved(self, middle: Tensor, scale: Tensor) -> Range:
        """The range of (x - middle) / scale."""
        return Range((self.low - middle) / scale, (self.high - middle) / scale)


Ranges = dict[nn.Module, Range]
Look = Callable[[nn.Module, Tensor, Tensor], None]


@torch.no_grad()
def quantized(model: FMViT, images: Tensor | None = None, *, limit: float = LIMIT) -> FMViT:
    """A copy with int8 linear maps in its blocks; the patches and the head stay float32.

    Without images every token is scaled as it comes, which is slower.

    Shapes:
        images: float[B, C, H, W], a few dozen that are like those to come
    Units:
        limit: how far rounding may move a map's output, as a share of its length, root mean square
            over the tokens of the images
    """
    small = copy.deepcopy(model).eval()
    if images is None:
        replace_linear(small.encoder, Int8Linear)
        return small
    ranges = _observed(small, images)
    for block in small.encoder:
        _smooth(block, ranges)
    made = _chosen(small, images, ranges, limit)
    replace_linear(small.encoder, lambda layer: made[layer])
    return small


def _chosen(
    model: FMViT, images: Tensor, ranges: Ranges, limit: float
) -> dict[nn.Module, nn.Module]:
    """Every map in the fastest form whose error is within the limit."""
    chosen: dict[nn.Module, nn.Module] = {}
    for form in (_ranged, lambda layer, _: Int8Linear(layer)):
        left = {layer: form(layer, seen) for layer, seen in ranges.items() if layer not in chosen}
        errors = _errors(model, images, left)
        chosen |= {layer: left[layer] for layer, error in errors.items() if error <= limit}
    return {layer: chosen.get(layer, layer) for layer in ranges}


def _ranged(layer: Any, seen: Range) -> nn.Module:
    return RangedInt8Linear(layer, float(seen.low.min()), float(seen.high.max()))


def _observed(model: FMViT, images: Tensor) -> Ranges:
    """The range of every channel of the inputs of every map in the blocks."""
    seen: Ranges = {}

    def look(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        low, high = x.flatten(0, -2).aminmax(dim=0)
        old = seen.get(layer, Range(low, high))
        seen[layer] = Range(torch.minimum(old.low, low), torch.maximum(old.high, high))

    _run(model, images, look)
    return seen


def _errors(
    model: FMViT, images: Tensor, made: dict[nn.Module, nn.Module]
) -> dict[nn.Module, float]:
    """How far each map's int8 form is from it, as a share of a token's output."""
    shares: dict[nn.Module, list[Tensor]] = {layer: [] for layer in made}

    def compare(layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if layer in made:
            off, own = ((made[layer](x) - y).norm(dim=-1), y.norm(dim=-1).clamp_min(1e-30))
            shares[layer].append((off / own).square().mean())

    _run(model, images, compare)
    return {layer: float(torch.stack(found).mean().sqrt()) for layer, found in shares.items()}


def _run(model: FMViT, images: Tensor, look: Look) -> None:
    """Runs images, one after the other to save memory, and shows what goes in and out of maps."""
    with _watched(model.encoder, look):
        for image in images:
            model.forward_features(image[None])


class _Watched(nn.Module):
    """A map whose inputs and outputs are shown; a plain one may be multiplied past its call."""

    def __init__(self, layer: nn.Linear, look: Look) -> None:
        super().__init__()
        self.layer, self.look = layer, look

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.look(self.layer, x, y)
        return y


@contextmanager
def _watched(blocks: nn.Module, look: Look) -> Iterator[None]:
    replace_linear(blocks, lambda layer: _Watched(layer, look))
    try:
        yield
    finally:
        for parent in list(blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _Watched):
                    setattr(parent, name, child.layer)


def _smooth(block: Any, ranges: Ranges) -> None:
    """Gives the channels of the inputs of one block's maps like ranges; changes `ranges` too."""
    attn, mlp = block.attn, block.mlp
    gated = hasattr(mlp, "fc3")
    into_mlp = [mlp.fc1, mlp.fc3] if gated else [mlp.fc1]
    for norm, maps in ((block.norm1, [attn.qkv]), (block.norm2, into_mlp)):
        middle, scale = _moved(maps, ranges)
        norm.bias.copy_((norm.bias - middle) / scale)
        norm.weight.div_(scale)
    # The weights of attention sum to one, so what is taken off the values is off their mean
    middle, scale = _moved([attn.proj], ranges)
    values = slice(2 * attn.proj.in_features, None)
    _take_off(attn.qkv, values, middle, scale)
    if gated:
        _, scale = _moved([mlp.fc2], ranges, center=False)
        _take_off(mlp.fc3, slice(None), torch.zeros_like(scale), scale)


def _take_off(layer: nn.Linear, rows: slice, middle: Tensor, scale: Tensor) -> None:
    """Makes some outputs of a map (y - middle) / scale."""
    _with_bias(layer)
    layer.weight[rows] /= scale[:, None]
    layer.bias[rows] = (layer.bias[rows] - middle) / scale


def _moved(
    maps: Sequence[nn.Linear], ranges: Ranges, *, center: bool = True
) -> tuple[Tensor, Tensor]:
    """Lets maps of one input expect (x - middle) / scale instead of x; returns these two."""
    seen = ranges[maps[0]]
    middle = (seen.low + seen.high) / 2 if center else torch.zeros_like(seen.low)
    reach = torch.maximum(seen.high - middle, middle - seen.low).clamp_min(1e-5)
    weights = torch.stack([m.weight.abs().amax(dim=0) for m in maps]).amax(dim=0).clamp_min(1e-5)
    scale = (reach / weights).sqrt()
    scale = scale / scale.log().mean().exp()
    for layer in maps:
        if center:
            _with_bias(layer)
            layer.bias.add_(layer.weight @ middle)
        layer.weight.mul_(scale)
        ranges[layer] = seen.moved(middle, scale)
    return middle, scale


def _with_bias(layer: nn.Linear) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features))
