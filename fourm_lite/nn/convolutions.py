"""MobileNetV2's blocks, seen at two scales, to stand beside a transformer's.

A patch projection sees 16 x 16 pixels at once and nothing around them; textures and parts are then
left to the transformer, which needs many photos for them. Convolutions need few, and a trained
network's are there to begin with. Norms are folded into the convolutions, so each has a bias.

Source:
    MobileNetV2 (Sandler et al. 2018)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST = 32
_FINE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_COARSE = ((6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first of them: the rows of the paper's table 2."""
WIDTH = _FINE[-1][1] + _COARSE[-1][1]


class Conv(nn.Conv2d):
    """A convolution whose output is the input's size over the stride, as TensorFlow pads."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1):
        padding = size // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, size, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W] -> float[B, C', H / stride, W / stride], rounded up."""
        if self.stride[0] > 1:
            x = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Widens, filters each channel, narrows; adds the input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Conv(inputs, wide, 1) if expansion > 1 else None
        self.filter = Conv(wide, wide, 3, stride=stride, groups=wide)
        self.narrow = Conv(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W] -> float[B, C', H / stride, W / stride], rounded up."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.narrow(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class Convolutions(nn.Module):
    """Pixels to one vector for each 16 x 16 of them: what 16 and what 32 pixels a side hold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv(channels, _FIRST, 3, stride=2)
        self.fine = _blocks(_FIRST, _FINE)
        self.coarse = _blocks(_FINE[-1][1], _COARSE)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W], sides multiples of 16 -> float[B, H * W / 256, 416], rows first.

        The features of each scale are normed: a trained network's are ten times a patch's size.
        """
        x = x.to(memory_format=torch.channels_last)  # a third faster on a CPU
        fine = self.fine(F.relu6(self.first(x)))
        coarse = self.coarse(fine).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        coarse = coarse[:, :, : fine.shape[2], : fine.shape[3]]
        rows = [y.flatten(2).transpose(1, 2) for y in (fine, coarse)]
        return torch.cat([F.layer_norm(y, y.shape[-1:]) for y in rows], dim=2)

    def init_weights(self) -> None:
        """Draws all weights for rectified outputs."""
        for layer in self.layers():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def layers(self) -> list[Conv]:
        """In the order in which pixels go through them."""
        return [m for m in self.modules() if isinstance(m, Conv)]


def _blocks(width: int, stages: tuple[tuple[int, int, int, int], ...]) -> nn.Sequential:
    blocks = []
    for expansion, outputs, count, stride in stages:
        for i in range(count):
            step = stride if i == 0 else 1
            blocks.append(InvertedResidual(width, outputs, expansion=expansion, stride=step))
            width = outputs
    return nn.Sequential(*blocks)
