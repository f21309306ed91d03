"""Maps of one number a pixel, such as segmentations, to tokens and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ShapeError
from fourm_lite.nn.device import without_storage
from fourm_lite.tokenization.aion.images import cropped
from fourm_lite.tokenization.aion.layers import Residuals, conv2d, filled, grow2d
from fourm_lite.tokenization.vq.finite import FiniteScalar
from fourm_lite.tokenization.vq.inputs import tokens_in


class ScalarFieldCodec(nn.Module):
    """The network of `codecs/segmentation_map`."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.quantizer = FiniteScalar(config["levels"], "tanh")
        self.extension = float(config.get("output_activation_extension") or 0.0)
        halvings = int(config["num_downsamples"])
        self.encoder = nn.ModuleDict({"net": _encoder(weights, halvings)})
        self.encode_proj = conv2d(weights, "encode_proj")
        self.decode_proj = conv2d(weights, "decode_proj")
        self.decoder = nn.ModuleDict({"net": _decoder(weights, halvings)})

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.quantizer.vocab_size

    @torch.no_grad()
    def latents(self, raw: Tensor) -> Tensor:
        """What is quantized: float[B, H, W] -> float[B, d, L] of the central 96 x 96 pixels."""
        if raw.ndim != 3:
            raise ShapeError(f"a map is [B, H, W], got {list(raw.shape)}")
        x = cropped(torch.as_tensor(raw, dtype=torch.float32))[:, None]
        return self.encode_proj(self.encoder["net"](x)).flatten(2)

    def tokenize(self, raw: Tensor) -> Tensor:
        """Tokens int64[B, L] of maps."""
        tokens: Tensor = self.quantizer(self.latents(raw)).tokens
        return tokens

    @torch.no_grad()
    def detokenize(self, tokens: Tensor, **options: Any) -> Tensor:
        """Maps float[B, 96, 96] of tokens, in 0..1."""
        ids = tokens_in(tokens, self.vocab_size)
        side = math.isqrt(ids.shape[1])
        if side * side != ids.shape[1]:
            raise ShapeError(f"a map has a square number of tokens, got {list(ids.shape)}")
        values = rearrange(self.quantizer.lookup(ids), "b d (h w) -> b d h w", h=side)
        shown = torch.sigmoid(self.decoder["net"](self.decode_proj(values)))[:, 0]
        return ((1 + 2 * self.extension) * shown - self.extension).clamp(0, 1)


def _encoder(weights: Mapping[str, Tensor], halvings: int) -> nn.Sequential:
    place = "encoder.net"
    parts: list[nn.Module] = []
    for i in range(halvings):
        parts += [conv2d(weights, f"{place}.{2 * i}", stride=2, padding=1), nn.ReLU()]
    last = 2 * halvings
    return nn.Sequential(
        *parts, conv2d(weights, f"{place}.{last}"), Residuals(weights, f"{place}.{last + 1}")
    )


def _decoder(weights: Mapping[str, Tensor], halvings: int) -> nn.Sequential:
    place = "decoder.net"
    parts: list[nn.Module] = [grow2d(weights, f"{place}.0"), Residuals(weights, f"{place}.1")]
    for i in range(halvings):
        parts += [nn.ReLU(), grow2d(weights, f"{place}.{3 + 2 * i}", stride=2)]
    return nn.Sequential(*parts)


def read_field(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ScalarFieldCodec:
    """The codec of a folder."""
    kept = {k: v for k, v in weights.items() if not k.endswith("quantizer.levels")}
    with without_storage():
        codec = ScalarFieldCodec(config, kept)
    filled(codec, kept, "field codec")
    return codec
