"""The patched UNet of diffusion decoders: denoises pixels on a quarter-resolution grid.

Unusual: pixels are regrouped into 4x4 patches and the token latents are concatenated to them, so
that the first convolution sees both. Attribute names and list positions are 4M's keys.

Source:
    Diffusion Models Beat GANs (Dhariwal & Nichol 2021), the UNet without scale-shift norms
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, check_choice
from fourm_lite.nn.attention import fused_attention
from fourm_lite.tokenization.vq.backbones import check_multiple
from fourm_lite.tokenization.vq.config import TokenizerConfig


@dataclass(frozen=True)
class UNetPreset:
    """Size of a UNet; `attention` lists the downsampling factors that attend."""

    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    res_blocks: int = 3
    attention: tuple[int, ...] = (4, 8)
    patch: int = 4

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


UNET_PRESETS: dict[str, UNetPreset] = {"unet_patched": UNetPreset()}


class PatchedUNet(nn.Module):
    """Predicts from a noised image, its time step and token latents.

    Shapes:
        noised: float[B, C, H, W]; timesteps: int64[B]; latents: float[B, latent_dim, Hq, Wq]
        cond_mask: bool[B, Hq, Wq], True where the condition is removed
        returns: float[B, C, H, W]
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        preset = unet_preset(str(config.dec_type))
        self.preset = preset
        pixels = config.out_channels * preset.patch**2
        time_dim = 4 * preset.channels
        self.time_embed = nn.Sequential(
            nn.Linear(preset.channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )
        self.input_blocks, widths = _down(preset, pixels + config.latent_dim, time_dim)
        mid = widths[-1]
        self.middle_block = Stage(
            ResBlock(mid, mid, time_dim), AttentionBlock(mid), ResBlock(mid, mid, time_dim)
        )
        self.output_blocks = _up(preset, widths, time_dim)
        last = preset.channels * preset.multipliers[0]
        self.out = nn.Sequential(
            GroupNorm32(last), nn.SiLU(), _zeroed(nn.Conv2d(last, pixels, 3, padding=1))
        )

    def forward(
        self, noised: Tensor, timesteps: Tensor, latents: Tensor, cond_mask: Tensor | None = None
    ) -> Tensor:
        """One prediction of the scheduler's target."""
        check_multiple(noised, self.preset.multiple)
        patch = {"ph": self.preset.patch, "pw": self.preset.patch}
        x = rearrange(noised, "b c (h ph) (w pw) -> b (c ph pw) h w", **patch)
        if cond_mask is not None:
            latents = latents.masked_fill(cond_mask[:, None], 0.0)
        x = torch.cat([x, F.interpolate(latents, size=x.shape[-2:], mode="nearest")], dim=1)
        time = self.time_embed(time_waves(timesteps, self.preset.channels).to(x.dtype))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, time)
            skips.append(x)
        x = self.middle_block(x, time)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), time)
        return rearrange(self.out(x), "b (c ph pw) h w -> b c (h ph) (w pw)", **patch)


class Stage(nn.Sequential):
    """Layers in a row, of which residual blocks also read the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        """Maps float[B, C, H, W] with the time embedding float[B, T]."""
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions around the added time embedding, beside a skip connection."""

    def __init__(self, dim_in: int, dim_out: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm32(dim_in), nn.SiLU(), nn.Conv2d(dim_in, dim_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, dim_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(dim_out),
            nn.SiLU(),
            nn.Identity(),  # keeps the place of a dropout in the keys
            _zeroed(nn.Conv2d(dim_out, dim_out, 3, padding=1)),
        )
        same = dim_in == dim_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps float[B, dim_in, H, W] to float[B, dim_out, H, W]."""
        y = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(y)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(dim)
        self.qkv = nn.Conv1d(dim, 3 * dim, 1)
        self.proj_out = _zeroed(nn.Conv1d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[B, C, H, W] to the same shape."""
        flat = rearrange(x, "b c h w -> b c (h w)")
        q, k, v = rearrange(self.qkv(self.norm(flat)), "b (n c) l -> n b 1 l c", n=3)
        y = rearrange(fused_attention(q, k, v), "b 1 l c -> b c l")
        return rearrange(flat + self.proj_out(y), "b c (h w) -> b c h w", h=x.shape[-2])


class Downsample(nn.Module):
    """A strided convolution, under the key `op`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halves height and width."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Doubles height and width."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class GroupNorm32(nn.GroupNorm):
    """Group norm with 32 groups, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__(32, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises float[B, C, ...]."""
        y = F.group_norm(x.float(), 32, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


def unet_preset(name: str) -> UNetPreset:
    """The size behind a decoder's name, or of our own: 'unet_patched_64' for 64 channels."""
    if own := re.fullmatch(r"unet_patched_(\d{1,4})", name):
        return UNetPreset(channels=_multiple_of_32(int(own.group(1))))
    check_choice("a UNet", name, of=UNET_PRESETS)
    return UNET_PRESETS[name]


def _multiple_of_32(channels: int) -> int:
    if channels % 32 or not channels:
        raise ConfigError(f"a UNet's channels are a multiple of 32 (its norms), got {channels}")
    return channels


def time_waves(timesteps: Tensor, dim: int) -> Tensor:
    """Time steps as waves: int[B] -> float32[B, dim], cosines before sines."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (dim // 2))[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _down(preset: UNetPreset, dim_in: int, time_dim: int) -> tuple[nn.ModuleList, list[int]]:
    """The contracting half, and the width of each of its outputs."""
    width = preset.channels * preset.multipliers[0]
    stages, widths = [Stage(nn.Conv2d(dim_in, width, 3, padding=1))], [width]
    for level, multiplier in enumerate(preset.multipliers):
        for _ in range(preset.res_blocks):
            dim = preset.channels * multiplier
            stages.append(Stage(ResBlock(width, dim, time_dim), *_attention(preset, level, dim)))
            width = dim
            widths.append(width)
        if level < len(preset.multipliers) - 1:
            stages.append(Stage(Downsample(width)))
            widths.append(width)
    return nn.ModuleList(stages), widths


def _up(preset: UNetPreset, widths: list[int], time_dim: int) -> nn.ModuleList:
    """The expanding half; each stage reads one output of the contracting half."""
    stages, skips, width = [], list(widths), widths[-1]
    for level, multiplier in reversed(list(enumerate(preset.multipliers))):
        for i in range(preset.res_blocks + 1):
            dim = preset.channels * multiplier
            layers = [ResBlock(width + skips.pop(), dim, time_dim), *_attention(preset, level, dim)]
            if level > 0 and i == preset.res_blocks:
                layers.append(Upsample(dim))
            stages.append(Stage(*layers))
            width = dim
    return nn.ModuleList(stages)


def _attention(preset: UNetPreset, level: int, dim: int) -> list[nn.Module]:
    return [AttentionBlock(dim)] if 2**level in preset.attention else []


def _zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters zero: a residual branch that starts silent."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
