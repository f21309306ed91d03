"""MobileCLIP's image and text towers, of the sizes that their weights have.

Source: MobileCLIP (Vasu et al. 2024); FastViT (Vasu et al. 2023) for the convolutional tower
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.embedders.mobileclip.layers import (
    AttentionBlock,
    Downsample,
    FusedAttention,
    Mixer,
    MixerBlock,
    MobileOne,
    TransformerBlock,
    conv_of,
)
from fourm_lite.embedders.pth import Weights
from fourm_lite.errors import CheckpointError
from fourm_lite.families.mobileclip import MobileClipFamily

IMAGE, TEXT = "image_encoder.model.", "text_encoder."


@dataclass(frozen=True)
class Shape:
    """What no weight says: sizes, heads and whether words look ahead."""

    image_size: int
    image_head: int
    text_head: int
    causal: bool


class ConvTower(nn.Module):
    """MCi: a stem, stages with halvings between, attention in the last, a wide head."""

    def __init__(self, weights: Weights, family: MobileClipFamily) -> None:
        super().__init__()
        strides = (2, 2, 1)
        self.patch_embed = nn.Sequential(
            *(MobileOne(weights, f"patch_embed.{i}", stride) for i, stride in enumerate(strides))
        )
        stages = sorted({int(k.split(".")[1]) for k in weights if k.startswith("network.")})
        width = weights["patch_embed.2.reparam_conv.weight"].shape[0]
        found: list[nn.Module] = []
        for stage in stages:
            place = f"network.{stage}"
            if f"{place}.proj.0.lkb_reparam.weight" in weights:
                found.append(Downsample(weights, place, width))
                width = weights[f"{place}.proj.1.reparam_conv.weight"].shape[0]
            elif f"{place}.reparam_conv.weight" in weights:
                found.append(Mixer(weights, place))
            else:
                found.append(_stage(weights, place, family))
        self.network = nn.Sequential(*found)
        self.conv_exp = MobileOne(weights, "conv_exp", inputs=width)
        self.head = nn.ParameterDict({"proj": nn.Parameter(torch.empty_like(weights["head.proj"]))})

    def forward(self, pixels: Tensor) -> Tensor:
        """float32[B, 3, H, W] -> [B, E]."""
        x = self.conv_exp(self.network(self.patch_embed(pixels)))
        return x.mean((2, 3)) @ self.head["proj"]


def _stage(weights: Weights, place: str, family: MobileClipFamily) -> nn.Sequential:
    numbers = sorted({int(k.split(".")[2]) for k in weights if k.startswith(f"{place}.")})
    blocks = [f"{place}.{number}" for number in numbers]
    return nn.Sequential(
        *(
            AttentionBlock(weights, block, family.conv_head)
            if f"{block}.token_mixer.qkv.weight" in weights
            else MixerBlock(weights, block)
            for block in blocks
        )
    )


class VitTower(nn.Module):
    """A ViT with a convolutional stem; its first convolution is padded by 1, unlike timm's."""

    def __init__(self, weights: Weights, family: MobileClipFamily, head: int) -> None:
        super().__init__()
        width = weights["cls_token"].shape[-1]
        self.patch_emb = nn.ModuleList(
            StemConv(weights, f"patch_emb.{i}", stride, padding)
            for i, (stride, padding) in enumerate(((4, 1), (2, 0), (2, 0)))
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = _positions(weights["pos_embed.pos_embed.pos_embed"])
        self.transformer = _blocks(weights, head, family.eps)
        self.post_transformer_norm = nn.LayerNorm(width, eps=family.eps)
        proj = nn.Parameter(torch.empty_like(weights["classifier.proj"]))
        self.classifier = nn.ParameterDict({"proj": proj})

    def forward(self, pixels: Tensor) -> Tensor:
        """float32[B, 3, H, W] -> [B, E]."""
        for stem in self.patch_emb:
            pixels = stem(pixels)
        x = rearrange(pixels, "b d h w -> b (h w) d")
        x = x + _resized(_table(self.pos_embed), x.shape[1])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.transformer:
            x = block(x)
        made: Tensor = self.post_transformer_norm(x)[:, 0] @ self.classifier["proj"]
        return made


class StemConv(nn.Module):
    """A convolution; a norm and GELU where the file has a norm."""

    def __init__(self, weights: Weights, place: str, stride: int, padding: int) -> None:
        super().__init__()
        conv = conv_of(weights, f"{place}.block.conv", stride=stride)
        conv.padding = (padding, padding)
        parts: dict[str, nn.Module] = {"conv": conv}
        if f"{place}.block.norm.weight" in weights:
            parts["norm"] = nn.BatchNorm2d(conv.out_channels)
        self.block = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        made: Tensor = self.block["conv"](x)
        return F.gelu(self.block["norm"](made)) if "norm" in self.block else made


class TextTower(nn.Module):
    """Words to a vector: the state at the end token, projected. Padding is read like words."""

    def __init__(self, weights: Weights, family: MobileClipFamily, head: int, causal: bool) -> None:
        super().__init__()
        vocabulary, width = weights["embedding_layer.weight"].shape
        self.embedding_layer = nn.Embedding(vocabulary, width)
        self.positional_embedding = _positions(weights["positional_embedding.pos_embed.pos_embed"])
        self.transformer = _blocks(weights, head, family.eps)
        self.final_layer_norm = nn.LayerNorm(width, eps=family.eps)
        self.projection_layer = nn.Parameter(torch.empty_like(weights["projection_layer"]))
        for part in self.modules():
            if isinstance(part, FusedAttention):
                part.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        """int64[B, L] -> [B, E]; the end token has the largest id."""
        x = self.embedding_layer(ids)
        x = x + _resized(_table(self.positional_embedding), x.shape[1])
        for block in self.transformer:
            x = _over_words(block, x)
        x = self.final_layer_norm(x)
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.projection_layer


def _over_words(block: nn.Module, x: Tensor) -> Tensor:
    """A convolutional block reads words as a picture of one row."""
    if not isinstance(block, MixerBlock):
        made: Tensor = block(x)
        return made
    return rearrange(block(rearrange(x, "b n d -> b d 1 n")), "b d 1 n -> b n d")


class MobileClip(nn.Module):
    """Both towers and the scale of their cosines."""

    def __init__(self, weights: Weights, family: MobileClipFamily, shape: Shape) -> None:
        super().__init__()
        image, text = below(weights, IMAGE), below(weights, TEXT)
        missing = [n for n, part in (("an image", image), ("a text", text)) if not part]
        if missing or "logit_scale" not in weights:
            raise CheckpointError(
                f"MobileCLIP has two towers and logit_scale; this lacks {missing}"
            )
        tower: nn.Module = (
            VitTower(image, family, shape.image_head)
            if "cls_token" in image
            else ConvTower(image, family)
        )
        self.image_encoder = nn.ModuleDict({"model": tower})
        self.text_encoder = TextTower(text, family, shape.text_head, shape.causal)
        self.logit_scale = nn.Parameter(torch.empty_like(weights["logit_scale"]))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """float32[B, 3, H, W] -> [B, E], not divided by its length."""
        made: Tensor = self.image_encoder["model"](pixels)
        return made

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64[B, L] -> [B, E], not divided by its length."""
        made: Tensor = self.text_encoder(ids)
        return made

    @property
    def scale(self) -> float:
        """What cosines are multiplied by, at most 100."""
        return min(float(self.logit_scale.detach().exp()), 100.0)


def below(weights: Weights, prefix: str) -> Weights:
    """The weights below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _blocks(weights: Weights, head: int, eps: float) -> nn.ModuleList:
    numbers = sorted({int(k.split(".")[1]) for k in weights if k.startswith("transformer.")})
    found: list[nn.Module] = []
    for number in numbers:
        place = f"transformer.{number}"
        if f"{place}.pre_norm_ffn.1.weight" not in weights:
            found.append(MixerBlock(weights, place))
            continue
        hidden, width = weights[f"{place}.pre_norm_ffn.1.weight"].shape
        found.append(TransformerBlock(width, hidden, head, eps))
    return nn.ModuleList(found)


def _positions(table: Tensor) -> nn.Module:
    """Apple's name for a table of positions has three levels."""
    inner = nn.ParameterDict({"pos_embed": nn.Parameter(torch.empty_like(table))})
    return nn.ModuleDict({"pos_embed": inner})


def _table(positions: nn.Module) -> Tensor:
    """float32[L, D]."""
    table: Tensor = positions["pos_embed"]["pos_embed"]  # type: ignore[index]
    return table[0, 0]


def _resized(table: Tensor, length: int) -> Tensor:
    """Positions along the flat list; those of the table where the length is its own."""
    if len(table) == length:
        return table
    wide = rearrange(table, "n d -> 1 1 n d")
    return F.interpolate(wide, (length, table.shape[1]), mode="bilinear")[0, 0]
