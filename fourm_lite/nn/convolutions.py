"""A convolutional stem: the first blocks of MobileNetV2, down to one cell for 16 x 16 pixels.

A patch projection sees 16 x 16 pixels at once and nothing around them; textures and parts are then
left to the transformer, which needs many photos for them. Early convolutions need few. Norms are
folded into the convolutions, so each has a bias.

Source:
    MobileNetV2 (Sandler et al. 2018); Early convolutions help transformers see better (Xiao et al.
    2021)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 96
_FIRST = 32
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, WIDTH, 3, 1))
"""Expansion, channels, blocks, stride of the first of them: the paper's table 2, its first rows."""


class Conv(nn.Conv2d):
    """A convolution whose output is the input's size over the stride, as TensorFlow pads."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1):
        padding = size // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, size, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W] -> float[B, C', H / stride, W / stride]; even sides."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] > 1 else x)


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
        """float[B, C, H, W] -> float[B, C', H / stride, W / stride]."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.narrow(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class ConvStem(nn.Module):
    """Pixels to one vector for each 16 x 16 of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv(channels, _FIRST, 3, stride=2)
        blocks, width = [], _FIRST
        for expansion, outputs, count, stride in _STAGES:
            for i in range(count):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(width, outputs, expansion=expansion, stride=step))
                width = outputs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W], sides multiples of 16 -> float[B, 96, H / 16, W / 16]."""
        x = x.to(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.blocks(F.relu6(self.first(x)))

    def init_weights(self) -> None:
        """Draws all weights for rectified outputs."""
        for layer in self.convolutions():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def convolutions(self) -> list[Conv]:
        """In the order in which pixels go through them."""
        return [m for m in self.modules() if isinstance(m, Conv)]
