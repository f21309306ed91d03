"""A tiny MobileCLIP with random weights under Apple's names, its branches as they train."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

OUT, WIDTH, WORDS, HEAD = 12, 32, 32, 32


class Draw:
    """Random tensors by name."""

    def __init__(self, seed: int = 0) -> None:
        self.weights: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def put(self, name: str, *shape: int, scale: float = 0.3) -> None:
        self.weights[name] = scale * torch.randn(shape, generator=self.generator)

    def norm(self, name: str, width: int, *, batch: bool = True) -> None:
        self.put(f"{name}.weight", width)
        self.weights[f"{name}.weight"] += 1
        self.put(f"{name}.bias", width)
        if batch:
            self.put(f"{name}.running_mean", width)
            self.weights[f"{name}.running_var"] = torch.rand(width, generator=self.generator) + 0.5
            self.weights[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def conv_norm(self, name: str, *shape: int) -> None:
        self.put(f"{name}.conv.weight", *shape)
        self.norm(f"{name}.bn", shape[0])

    def conv(self, name: str, *shape: int) -> None:
        self.put(f"{name}.weight", *shape)
        self.put(f"{name}.bias", shape[0])

    def mobile_one(
        self, name: str, outs: int, ins: int, kernel: int, *, skip: bool = False
    ) -> None:
        self.conv_norm(f"{name}.rbr_conv.0", outs, ins, kernel, kernel)
        if kernel > 1:
            self.conv_norm(f"{name}.rbr_scale", outs, ins, 1, 1)
        if skip:
            self.norm(f"{name}.rbr_skip", outs)

    def ffn(self, name: str, width: int, rows: int, columns: int) -> None:
        self.conv_norm(f"{name}.conv", width, 1, rows, columns)
        self.conv(f"{name}.fc1", 2 * width, width, 1, 1)
        self.conv(f"{name}.fc2", width, 2 * width, 1, 1)

    def mixer_block(self, name: str, width: int, rows: int, columns: int, ffn: int) -> None:
        mixer = f"{name}.token_mixer"
        self.put(f"{mixer}.layer_scale", width, 1, 1)
        self.norm(f"{mixer}.norm.rbr_skip", width)
        self.norm(f"{mixer}.mixer.rbr_skip", width)
        self.conv_norm(f"{mixer}.mixer.rbr_conv.0", width, 1, rows, columns)
        if rows > 1:
            self.conv_norm(f"{mixer}.mixer.rbr_scale", width, 1, 1, 1)
        self.ffn(f"{name}.convffn", width, min(ffn, rows + 4), ffn)
        self.put(f"{name}.layer_scale", width, 1, 1)

    def transformer(self, name: str, width: int) -> None:
        for part, rows in (
            ("pre_norm_mha.1.qkv_proj", 3 * width),
            ("pre_norm_mha.1.out_proj", width),
        ):
            self.conv(f"{name}.{part}", rows, width)
        self.conv(f"{name}.pre_norm_ffn.1", 2 * width, width)
        self.conv(f"{name}.pre_norm_ffn.4", width, 2 * width)
        for part in ("pre_norm_mha.0", "pre_norm_ffn.0"):
            self.norm(f"{name}.{part}", width, batch=False)


def conv_tower(draw: Draw, out: int, width: int) -> None:
    place = "image_encoder.model."
    draw.mobile_one(f"{place}patch_embed.0", 16, 3, 3)
    draw.mobile_one(f"{place}patch_embed.1", 16, 1, 3)
    draw.mobile_one(f"{place}patch_embed.2", 16, 16, 1, skip=True)
    draw.mixer_block(f"{place}network.0.0", 16, 3, 3, 7)
    down = f"{place}network.1.proj"
    draw.conv_norm(f"{down}.0.lkb_origin", width, 1, 7, 7)
    draw.conv_norm(f"{down}.0.small_conv", width, 1, 3, 3)
    draw.mobile_one(f"{down}.1", width, width, 1, skip=True)
    draw.conv(f"{place}network.2.pe", width, 1, 7, 7)
    block = f"{place}network.3.0"
    draw.norm(f"{block}.norm", width)
    draw.put(f"{block}.token_mixer.qkv.weight", 3 * width, width)
    draw.conv(f"{block}.token_mixer.proj", width, width)
    draw.ffn(f"{block}.convffn", width, 7, 7)
    for i in (1, 2):
        draw.put(f"{block}.layer_scale_{i}", width, 1, 1)
    draw.mobile_one(f"{place}conv_exp", 2 * width, 1, 3)
    draw.conv(f"{place}conv_exp.se.reduce", 4, 2 * width, 1, 1)
    draw.conv(f"{place}conv_exp.se.expand", 2 * width, 4, 1, 1)
    draw.put(f"{place}head.proj", 2 * width, out)


def text_tower(draw: Draw, out: int, words: int, layers: int) -> None:
    place = "text_encoder."
    draw.put(f"{place}embedding_layer.weight", 49408, words)
    draw.put(f"{place}positional_embedding.pos_embed.pos_embed", 1, 1, 77, words)
    draw.mixer_block(f"{place}transformer.0", words, 1, 11, 11)
    for number in range(1, layers + 1):
        draw.transformer(f"{place}transformer.{number}", words)
    draw.norm(f"{place}final_layer_norm", words, batch=False)
    draw.put(f"{place}projection_layer", words, out)
    draw.weights["logit_scale"] = torch.tensor(4.0)


def mobileclip_weights(
    seed: int = 0, *, out: int = OUT, width: int = WIDTH, words: int = WORDS, layers: int = 1
) -> dict[str, Tensor]:
    """Both towers and the scale."""
    draw = Draw(seed)
    conv_tower(draw, out, width)
    text_tower(draw, out, words, layers)
    return draw.weights


def save_mobileclip(path: Path) -> Path:
    """One .pt, as Apple publishes it."""
    torch.save(mobileclip_weights(), path)
    return path


def words(texts: list[str]) -> Tensor:
    """Stands in for CLIP's vocabulary: letters, and the end token."""
    rows = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [49406, *(ord(letter) for letter in text[:70]), 49407]
        row[: len(ids)] = torch.tensor(ids)
    return rows
