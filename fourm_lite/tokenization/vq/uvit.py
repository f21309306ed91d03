"""UViT decoders of diffusion tokenizers: convolutions outside, a transformer in the middle.

Unusual: the condition is either added to the transformer's tokens ('concat', 4M's word) or
cross-attended ('xattn'), where removed tokens are blocked. Time enters each block as shift, scale
and gate. With long skips each block of the last half first joins the result of its counterpart in
the first half; the middle block joins none. Attribute names are 4M's keys.

Source:
    simple diffusion (Hoogeboom et al. 2023); All are Worth Words (Bao et al. 2023);
    Scalable Diffusion Models with Transformers (Peebles & Xie 2023)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import check_choice
from fourm_lite.nn.attention import Attention, CrossAttention, blocked
from fourm_lite.nn.blocks import Mlp
from fourm_lite.nn.layers import LayerNorm
from fourm_lite.nn.posemb import sincos_2d
from fourm_lite.tokenization.vq.backbones import check_multiple
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.unet import GroupNorm32, Upsample, time_waves


@dataclass(frozen=True)
class UViTPreset:
    """Size of a UViT; `halves_mid` puts the transformer on half the last level's resolution."""

    dim: int
    depth: int
    num_heads: int
    halves_mid: bool = True
    long_skips: bool = False
    channels: tuple[int, ...] = (128, 256)
    layers_per_block: int = 2
    patch: int = 4
    time_dim: int = 512
    pos_grid: int = 32

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** (len(self.channels) - 1 + self.halves_mid)


UVIT_PRESETS: dict[str, UViTPreset] = {
    "uvit_b_p4_f16": UViTPreset(768, 12, 12),
    "uvit_l_p4_f16": UViTPreset(1024, 24, 16),
    "uvit_h_p4_f16": UViTPreset(1280, 32, 16),
    "uvit_b_p4_f16_longskip": UViTPreset(768, 13, 12, long_skips=True),
    "uvit_l_p4_f16_longskip": UViTPreset(1024, 25, 16, long_skips=True),
    "uvit_b_p4_f8": UViTPreset(768, 12, 12, halves_mid=False),
    "uvit_l_p4_f8": UViTPreset(1024, 24, 16, halves_mid=False),
    "uvit_b_p4_f16_extraconv": UViTPreset(768, 12, 12, False, channels=(128, 256, 256)),
    "uvit_l_p4_f16_extraconv": UViTPreset(1024, 24, 16, False, channels=(128, 256, 256)),
}


class UViT(nn.Module):
    """Predicts from a noised image, its time step and token latents.

    Shapes:
        noised: float[B, C, H, W]; timesteps: int64[B]; latents: float[B, latent_dim, Hq, Wq]
        cond_mask: bool[B, Hq, Wq], True where the condition is removed
        returns: float[B, C, H, W]
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        preset = uvit_preset(str(config.dec_type))
        self.preset = preset
        first, last = preset.channels[0], preset.channels[-1]
        image = config.out_channels
        self.conv_in = nn.Conv2d(image, first, preset.patch, stride=preset.patch)
        self.time_embedding = TimeEmbedding(first, preset.time_dim)
        self.down_blocks, skips = _down_blocks(preset)
        self.downsample_mid = MidDownsample(last) if preset.halves_mid else None
        middle = CrossMiddle if config.conditioning == "xattn" else ConcatMiddle
        self.mid_block = middle(preset, config.latent_dim, config.dec_transformer_dropout)
        self.upsample_mid = Upsample(last) if preset.halves_mid else None
        self.up_blocks = _up_blocks(preset, skips)
        self.conv_norm_out = GroupNorm32(first)
        self.conv_out = nn.ConvTranspose2d(first, image, preset.patch, stride=preset.patch)

    def forward(
        self, noised: Tensor, timesteps: Tensor, latents: Tensor, cond_mask: Tensor | None = None
    ) -> Tensor:
        """One prediction of the scheduler's target."""
        check_multiple(noised, self.preset.multiple)
        x = self.conv_in(noised)
        time = self.time_embedding(time_waves(timesteps, self.preset.channels[0]).to(x.dtype))
        skips = [x]
        for down in self.down_blocks:
            x = down(x, time, skips)
        if self.downsample_mid is not None:
            x = self.downsample_mid(x)
        x = self.mid_block(x, time, latents, cond_mask)
        if self.upsample_mid is not None:
            x = self.upsample_mid(x)
        for up in self.up_blocks:
            x = up(x, time, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class TimeEmbedding(nn.Module):
    """Two linear layers on the waves of a time step."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, waves: Tensor) -> Tensor:
        """Maps float[B, dim_in] to float[B, dim]."""
        return self.linear_2(F.silu(self.linear_1(waves)))


class ResnetBlock(nn.Module):
    """Two convolutions around the added time embedding, beside a shortcut."""

    def __init__(self, dim_in: int, dim_out: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm32(dim_in)
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, dim_out)
        self.norm2 = GroupNorm32(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps float[B, dim_in, H, W] to float[B, dim_out, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class DownBlock(nn.Module):
    """Residual blocks, then a strided convolution except on the last level."""

    def __init__(self, dim_in: int, dim: int, preset: UViTPreset, is_last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(dim_in if i == 0 else dim, dim, preset.time_dim)
            for i in range(preset.layers_per_block)
        )
        self.downsamplers = nn.ModuleList([] if is_last else [StridedConv(dim)])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        """Contracts a map and appends each result to `skips`."""
        for resnet in self.resnets:
            x = resnet(x, time)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks that each read a skip, then an upsampling except on the first level."""

    def __init__(self, dims_in: list[int], dim: int, preset: UViTPreset, is_first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(d, dim, preset.time_dim) for d in dims_in)
        self.upsamplers = nn.ModuleList([] if is_first else [Upsample(dim)])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        """Expands a map; takes its skips from the end of `skips`."""
        for resnet in self.resnets:
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class StridedConv(nn.Module):
    """A strided convolution, under the key `conv`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halves height and width."""
        return self.conv(x)


class MidDownsample(StridedConv):
    """The same; 4M's checkpoints hold its weights under two names, as older diffusers did."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.Conv2d_0 = self.conv


class Middle(nn.Module):
    """What both transformers share: projections in and out, and a position map of a 32x32 grid."""

    mid_pos_emb: Tensor
    resize_mode: str

    def __init__(self, preset: UViTPreset) -> None:
        super().__init__()
        side, width = preset.pos_grid, preset.channels[-1]
        table = rearrange(sincos_2d(side, side, preset.dim), "b (h w) d -> b d h w", h=side)
        self.register_buffer("mid_pos_emb", table.contiguous())
        self.mid_proj_in = nn.Linear(width, preset.dim)
        self.mid_proj_out = nn.Linear(preset.dim, width)

    def tokens(self, x: Tensor) -> Tensor:
        """A map as tokens with positions: float[B, C, h, w] -> float[B, h*w, D]."""
        position = F.interpolate(self.mid_pos_emb, size=x.shape[-2:], mode=self.resize_mode)
        y = self.mid_proj_in(rearrange(x, "b d h w -> b (h w) d"))
        return y + rearrange(position.to(y.dtype), "b d h w -> b (h w) d")

    def transformed(self, y: Tensor, blocks: nn.ModuleList, *context: Any) -> Tensor:
        """All blocks; those with a long skip first join the latest result still to be joined."""
        joins: list[Any] = [block.skip_linear for block in blocks]
        num_skips = len(joins) - joins.count(None)
        skips: list[Tensor] = []
        for i, (block, join) in enumerate(zip(blocks, joins, strict=True)):
            if join is not None:
                y = join(torch.cat([y, skips.pop()], dim=-1))
            y = block(y, *context)
            if i < num_skips:
                skips.append(y)
        return y

    def as_map(self, y: Tensor, like: Tensor) -> Tensor:
        """Tokens as a map of the outer width."""
        return rearrange(self.mid_proj_out(y), "b (h w) d -> b d h w", h=like.shape[-2])


class ConcatMiddle(Middle):
    """A transformer whose tokens have the latents added; removed ones are a learned mask token."""

    resize_mode = "bicubic"

    def __init__(self, preset: UViTPreset, latent_dim: int, dropout: float) -> None:
        super().__init__(preset)
        self.mid_block = nn.ModuleList(AdaBlock(preset, dropout, i) for i in range(preset.depth))
        self.mid_cond_proj = nn.Linear(latent_dim, preset.dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(preset.dim))

    def forward(self, x: Tensor, time: Tensor, latents: Tensor, cond_mask: Tensor | None) -> Tensor:
        """Maps float[B, C, h, w] to the same shape."""
        latents = F.interpolate(latents, size=x.shape[-2:], mode="nearest")
        condition = self.mid_cond_proj(rearrange(latents, "b d h w -> b (h w) d"))
        if cond_mask is not None:
            removed = rearrange(_resized_mask(cond_mask, x), "b h w -> b (h w) 1")
            condition = torch.where(removed, self.mask_token.to(condition.dtype), condition)
        y = self.transformed(self.tokens(x) + condition, self.mid_block, time)
        return self.as_map(y, x)


class CrossMiddle(Middle):
    """A transformer that attends to the latents; removed ones are blocked."""

    resize_mode = "nearest"

    def __init__(self, preset: UViTPreset, latent_dim: int, dropout: float) -> None:
        super().__init__(preset)
        self.mid_block = nn.ModuleList(
            AdaCrossBlock(preset, latent_dim, dropout, i) for i in range(preset.depth)
        )

    def forward(self, x: Tensor, time: Tensor, latents: Tensor, cond_mask: Tensor | None) -> Tensor:
        """Maps float[B, C, h, w] to the same shape."""
        context = rearrange(latents, "b d h w -> b (h w) d")
        bias = None
        if cond_mask is not None:
            bias = blocked(~rearrange(cond_mask, "b h w -> b 1 1 (h w)"), context.dtype)
        y = self.transformed(self.tokens(x), self.mid_block, time, context, bias)
        return self.as_map(y, x)


class AdaBlock(nn.Module):
    """Self-attention and MLP; time shifts and scales their norms and gates their results."""

    def __init__(self, preset: UViTPreset, dropout: float, index: int) -> None:
        super().__init__()
        self.skip_linear = _skip_linear(preset, index)
        self.norm1 = LayerNorm(preset.dim)
        self.attn = Attention(preset.dim, preset.num_heads)
        self.norm2 = LayerNorm(preset.dim)
        self.mlp = Mlp(preset.dim, 4 * preset.dim, act_layer="GELU", bias=True)
        self.adaLN_modulation, self.adaLN_gate = _ada(preset, branches=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps float[B, N, D] with the time embedding float[B, T]."""
        shift1, scale1, shift2, scale2 = _parts(self.adaLN_modulation, time, 4)
        gate1, gate2 = _parts(self.adaLN_gate, time, 2)
        y = self.attn(_modulated(self.norm1(x), shift1, scale1))
        x = x + gate1 * self.dropout(y)
        y = self.mlp(_modulated(self.norm2(x), shift2, scale2))
        return x + gate2 * self.dropout(y)


class AdaCrossBlock(nn.Module):
    """The same with cross-attention to the latents between the two."""

    def __init__(self, preset: UViTPreset, latent_dim: int, dropout: float, index: int) -> None:
        super().__init__()
        self.skip_linear = _skip_linear(preset, index)
        self.norm1 = LayerNorm(preset.dim)
        self.self_attn = Attention(preset.dim, preset.num_heads)
        self.cross_attn = CrossAttention(preset.dim, preset.num_heads)
        self.cross_attn.kv = nn.Linear(latent_dim, 2 * preset.dim)
        self.query_norm = LayerNorm(preset.dim)
        self.context_norm = LayerNorm(latent_dim, eps=1e-5)  # torch's default, as in 4M
        self.norm2 = LayerNorm(preset.dim)
        self.mlp = Mlp(preset.dim, 4 * preset.dim, act_layer="GELU", bias=True)
        self.adaLN_modulation, self.adaLN_gate = _ada(preset, branches=3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """Maps float[B, N, D]; `context` is float[B, L, latent_dim]."""
        shift1, scale1, shift2, scale2, shift3, scale3 = _parts(self.adaLN_modulation, time, 6)
        gate1, gate2, gate3 = _parts(self.adaLN_gate, time, 3)
        y = self.self_attn(_modulated(self.norm1(x), shift1, scale1))
        x = x + gate1 * self.dropout(y)
        keys_values = self.cross_attn.keys_values(self.context_norm(context))
        y = self.cross_attn(_modulated(self.query_norm(x), shift2, scale2), keys_values, bias)
        x = x + gate2 * self.dropout(y)
        y = self.mlp(_modulated(self.norm2(x), shift3, scale3))
        return x + gate3 * self.dropout(y)


def uvit_preset(name: str) -> UViTPreset:
    """The size behind a decoder's name, or one of our own: 'uvit_128x2x4_p4_f16'."""
    if own := re.fullmatch(r"uvit_(\d{1,5})x(\d{1,3})x(\d{1,3})_p4_f(8|16)", name):
        dim, depth, heads, factor = map(int, own.groups())
        return UViTPreset(dim, depth, heads, halves_mid=factor == 16)
    check_choice("a UViT", name, of=UVIT_PRESETS)
    return UVIT_PRESETS[name]


def _skip_linear(preset: UViTPreset, index: int) -> nn.Linear | None:
    """What joins a block of the last half with its counterpart in the first half."""
    has_skip = preset.long_skips and index > preset.depth // 2
    return nn.Linear(2 * preset.dim, preset.dim) if has_skip else None


def _ada(preset: UViTPreset, branches: int) -> tuple[nn.Linear, nn.Linear]:
    """Shifts and scales of each branch, and its gate, which starts closed."""
    modulation = nn.Linear(preset.time_dim, 2 * branches * preset.dim)
    gate = nn.Linear(preset.time_dim, branches * preset.dim)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return modulation, gate


def _parts(linear: nn.Linear, time: Tensor, count: int) -> tuple[Tensor, ...]:
    return linear(F.silu(time))[:, None].chunk(count, dim=-1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _resized_mask(cond_mask: Tensor, like: Tensor) -> Tensor:
    resized = F.interpolate(cond_mask[:, None].float(), size=like.shape[-2:], mode="nearest")
    return resized[:, 0] > 0.5


def _down_blocks(preset: UViTPreset) -> tuple[nn.ModuleList, list[int]]:
    """The contracting half, and the width of each skip."""
    blocks, skips, width = [], [preset.channels[0]], preset.channels[0]
    for level, dim in enumerate(preset.channels):
        is_last = level == len(preset.channels) - 1
        blocks.append(DownBlock(width, dim, preset, is_last))
        skips += [dim] * (preset.layers_per_block + (not is_last))
        width = dim
    return nn.ModuleList(blocks), skips


def _up_blocks(preset: UViTPreset, skips: list[int]) -> nn.ModuleList:
    blocks, left, width = [], list(skips), preset.channels[-1]
    for level, dim in reversed(list(enumerate(preset.channels))):
        count = preset.layers_per_block + 1
        dims_in = [(width if i == 0 else dim) + left.pop() for i in range(count)]
        blocks.append(UpBlock(dims_in, dim, preset, is_first=level == 0))
        width = dim
    return nn.ModuleList(blocks)
