"""Encoders and decoders of VQ tokenizers: ViTs and bottleneck MLPs, with a table of presets.

Unusual: a ViT here has no final norm; `post_mlp` adds one tanh MLP after the encoder's blocks or
before the decoder's output. Position maps are stored for one grid and resized to any other.
Attribute names are 4M's keys.

Source:
    ViT-VQGAN (Yu et al. 2021); Scaling MLPs (Bachmann et al. 2023)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, ShapeError, suggest
from fourm_lite.nn.blocks import Block, BlockConfig, Mlp
from fourm_lite.nn.layers import LayerNorm
from fourm_lite.nn.posemb import resize_map, sincos_2d
from fourm_lite.tokenization.vq.config import TokenizerConfig


@dataclass(frozen=True)
class ViTPreset:
    """Size of a transformer; in names of our own written 'dim x depth x heads'."""

    dim: int
    depth: int
    num_heads: int


VIT_PRESETS: dict[str, ViTPreset] = {
    "vit_proj": ViTPreset(192, 0, 3),  # ours, for the small family: patches alone, no blocks
    "vit_xs": ViTPreset(192, 3, 3),  # ours
    "vit_s": ViTPreset(512, 8, 8),
    "vit_b": ViTPreset(768, 12, 12),
    "vit_l": ViTPreset(1024, 24, 16),
}
MAX_MLP_BLOCKS = 1000


@dataclass(frozen=True)
class MLPPreset:
    """Size of a bottleneck MLP, read from its name."""

    blocks: int
    width: int
    expansion: int = 4

    @classmethod
    def parse(cls, name: str) -> MLPPreset:
        """Reads 'BottleneckMLP/B_6-Wi_1024' or 'BottleneckMLP/B_6-Wi_1024-E_2'.

        Raises:
            ConfigError: the name has another form
        """
        _, _, sizes = name.partition("/")
        numbers = [re.fullmatch(r"[A-Za-z]+_(\d{1,6})", part) for part in sizes.split("-")]
        if len(numbers) not in (2, 3) or not all(numbers):
            raise ConfigError(
                "an MLP is named like 'BottleneckMLP/B_6-Wi_1024' (blocks, width, optionally "
                f"'-E_4' for the expansion), got {name!r}"
            )
        preset = cls(*(int(match.group(1)) for match in numbers if match))
        if not (0 < preset.blocks <= MAX_MLP_BLOCKS and preset.width > 0 and preset.expansion > 0):
            raise ConfigError(f"{name!r} asks for an impossible size: {preset}")
        return preset


class ViTEncoder(nn.Module):
    """Patches or feature maps to a map of features.

    Shapes:
        forward: float[B, C, H, W] -> float[B, dim, H / patch, W / patch]
    """

    pos_emb: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        preset = vit_preset(config.enc_type)
        self.dim_out, self.patch = preset.dim, config.patch_size if config.patch_proj else 1
        self.register_buffer("pos_emb", _position_map(config.grid("enc"), preset.dim))
        self.proj = nn.Conv2d(config.n_channels, preset.dim, self.patch, stride=self.patch)
        self.blocks = _blocks(preset)
        self.norm_mlp, self.post_mlp = _post_mlp(preset.dim, config.post_mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes a map."""
        check_multiple(x, self.patch)
        return _transformed(self, self.proj(x))


class ViTDecoder(nn.Module):
    """A map of features to pixels, class scores or a feature map.

    Shapes:
        forward: float[B, dim, h, w] -> float[B, C, h * patch, w * patch]
    """

    pos_emb: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        preset = vit_preset(str(config.dec_type))
        self.dim_in, self.patch = preset.dim, config.decoder_patch if config.patch_proj else 1
        channels = config.out_channels
        self.register_buffer("pos_emb", _position_map(config.grid("dec"), preset.dim))
        self.blocks = _blocks(preset)
        self.norm_mlp, self.post_mlp = _post_mlp(preset.dim, config.post_mlp)
        self.out_proj = nn.Linear(preset.dim, channels * self.patch**2)
        convs = [ConvNeXtBlock(channels), ConvNeXtBlock(channels)] if config.out_conv else []
        self.out_conv = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tensor:
        """Decodes a map."""
        y = rearrange(_transformed(self, x), "b d h w -> b h w d")
        p = {"ph": self.patch, "pw": self.patch}
        y = rearrange(self.out_proj(y), "b h w (c ph pw) -> b c (h ph) (w pw)", **p)
        return self.out_conv(y)


class BottleneckMLP(nn.Module):
    """A residual MLP applied at each place of a map by itself.

    Shapes:
        forward: float[B, dim_in, h, w] -> float[B, dim_out, h, w]
    """

    def __init__(self, preset: MLPPreset, dim_in: int, dim_out: int) -> None:
        super().__init__()
        width = preset.width
        self.linear_in = nn.Linear(dim_in, width)
        self.linear_out = nn.Linear(width, dim_out)
        self.blocks = nn.ModuleList(
            BottleneckBlock(width, width * preset.expansion) for _ in range(preset.blocks)
        )
        self.layernorms = nn.ModuleList(nn.LayerNorm(width) for _ in range(preset.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Maps each place's vector."""
        y = self.linear_in(rearrange(x, "b c h w -> b h w c"))
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            y = y + block(norm(y))
        return rearrange(self.linear_out(y), "b h w c -> b c h w")


class BottleneckBlock(nn.Module):
    """W2 gelu(W1 x), under the key `block.{0,2}`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., width] to the same shape."""
        return self.block(x)


class ConvNeXtBlock(nn.Module):
    """x + gamma * W2 gelu(W1 norm(depthwise conv x)).

    Source:
        A ConvNet for the 2020s (Liu et al. 2022)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Refines a map float[B, dim, H, W]."""
        y = self.norm(rearrange(self.dwconv(x), "b c h w -> b h w c"))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + rearrange(y, "b h w c -> b c h w")


def make_encoder(config: TokenizerConfig) -> tuple[nn.Module, int]:
    """The encoder that a config names, and the width of its output."""
    if "vit" in config.enc_type:
        encoder = ViTEncoder(config)
        return encoder, encoder.dim_out
    if "MLP" in config.enc_type:
        preset = MLPPreset.parse(config.enc_type)
        return BottleneckMLP(preset, config.n_channels, preset.width), preset.width
    raise _unknown(config.enc_type, [f"{name}_enc" for name in VIT_PRESETS])


def make_decoder(config: TokenizerConfig) -> tuple[nn.Module, int]:
    """The direct decoder that a config names, and the width of its input."""
    name = str(config.dec_type)
    if "vit" in name and not name.startswith("uvit"):
        decoder = ViTDecoder(config)
        return decoder, decoder.dim_in
    if "MLP" in name:
        preset = MLPPreset.parse(name)
        return BottleneckMLP(preset, preset.width, config.out_channels), preset.width
    raise _unknown(name, [f"{preset}_dec" for preset in VIT_PRESETS])


def vit_preset(name: str) -> ViTPreset:
    """The size behind a name such as 'vit_b_enc', or of our own: 'vit_256x4x4_enc'."""
    for prefix, preset in VIT_PRESETS.items():
        if name.startswith(f"{prefix}_"):
            return preset
    if own := re.match(r"vit_(\d{1,5})x(\d{1,3})x(\d{1,3})_", name):
        return ViTPreset(*map(int, own.groups()))
    raise _unknown(name, [f"{prefix}_{name[-3:]}" for prefix in VIT_PRESETS])


def check_multiple(x: Tensor, multiple: int) -> None:
    """Refuses a map whose sides are no multiple of a number."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or not height or not width:
        raise ShapeError(
            f"height and width must be multiples of {multiple}, got {height}x{width}; "
            "crop or resize"
        )


def _unknown(name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"{name!r} is no known encoder or decoder; known are {known} and "
        f"'BottleneckMLP/B_<blocks>-Wi_<width>'.{suggest(name, known)}"
    )


def _position_map(grid: tuple[int, int], dim: int) -> Tensor:
    """The position map of a grid: float[1, dim, h, w], the row's waves in the first half."""
    height, width = grid
    # The table's slow axis is what it calls the width: here the rows
    table = sincos_2d(width, height, dim)
    return rearrange(table, "b (h w) d -> b d h w", h=height, w=width).contiguous()


def _blocks(preset: ViTPreset) -> nn.Sequential:
    block = BlockConfig(dim=preset.dim, num_heads=preset.num_heads)
    return nn.Sequential(*(Block(block) for _ in range(preset.depth)))


def _post_mlp(dim: int, on: bool) -> tuple[nn.Module | None, nn.Module | None]:
    return (LayerNorm(dim), Mlp(dim, 4 * dim, act_layer="Tanh", bias=True)) if on else (None, None)


def _transformed(vit: ViTEncoder | ViTDecoder, x: Tensor) -> Tensor:
    """Positions, blocks and the closing MLP: float[B, D, h, w] -> the same."""
    grid_h, grid_w = x.shape[-2:]
    y = x + resize_map(vit.pos_emb, (grid_h, grid_w)).to(x.dtype)
    y = vit.blocks(rearrange(y, "b d h w -> b (h w) d"))
    if vit.norm_mlp is not None and vit.post_mlp is not None:
        y = y + vit.post_mlp(vit.norm_mlp(y))
    return rearrange(y, "b (h w) d -> b d h w", h=grid_h)
