"""Sky images and maps to tokens: 96 x 96 pixels in several bands become 24 x 24 codes.

Nine channels stand for the bands of two surveys; absent ones are zero and the others count more.
The caller's flux is left as it is (the package clips it in place), a smaller image is refused (the
package makes a wrong number of tokens of it), and decoded HSC bands are in the scale in which they
came. Maps hold one number a pixel, such as segmentations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.tokenization.aion.layers import (
    ChannelNorm,
    Conv,
    Double,
    Residuals,
    Unit,
    built,
    conv2d,
    grow2d,
    linear,
    numbered,
    over_channels,
)
from fourm_lite.tokenization.vq.finite import FiniteScalar
from fourm_lite.tokenization.vq.inputs import tokens_in

SIDE = 96
LEVELS = "quantizer.levels"
# band -> clip of the flux, in the order of the channels
BANDS: dict[str, float] = {
    "HSC-G": 80, "HSC-R": 110, "HSC-I": 200, "HSC-Z": 330, "HSC-Y": 500,
    "DES-G": 6, "DES-R": 15, "DES-I": 20, "DES-Z": 25,
}  # fmt: skip
# HSC's zero point is 27 magnitudes, the Legacy Survey's 22.5
SCALES: dict[str, float] = {"HSC": 10 ** ((27 - 22.5) / 2.5), "DES": 1.0}


@dataclass(frozen=True)
class SkyImage:
    """Flux float[B, bands, H, W] and what each band is, such as ("DES-G", "DES-R", "DES-Z")."""

    flux: Tensor
    bands: tuple[str, ...]


class _Squares(nn.Module):
    """A network between pictures of 96 x 96 pixels and a square of codes."""

    quantizer: FiniteScalar

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.quantizer.vocab_size

    def values(self, tokens: Tensor, what: str) -> Tensor:
        """Values of tokens int64[B, L] as a map: float[B, d, h, h].

        Raises:
            ShapeError: their number is no square
        """
        ids = tokens_in(tokens, self.vocab_size)
        side = math.isqrt(ids.shape[1])
        if side * side != ids.shape[1]:
            raise ShapeError(f"{what} has a square number of tokens, got {list(ids.shape)}")
        return rearrange(self.quantizer.lookup(ids), "b d (h w) -> b d h w", h=side)


class ImageCodec(_Squares):
    """The network of `codecs/image`."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.range = float(config["range_compression_factor"])
        self.factor = float(config["mult_factor"])
        self.quantizer = FiniteScalar(config["quantizer_levels"], "tanh")
        self.subsample_in = linear(weights, "subsample_in")
        self.model = Autoencoder(weights, "model")
        self.pre_quant_proj = conv2d(weights, "pre_quant_proj")
        self.post_quant_proj = conv2d(weights, "post_quant_proj")
        self.subsample_out = linear(weights, "subsample_out")

    @torch.no_grad()
    def latents(self, raw: SkyImage) -> Tensor:
        """What is quantized: float[B, d, 24 * 24].

        Raises:
            ConfigError: an unknown band, or bands of two surveys
            ShapeError: an image that is smaller than 96 pixels, or as many bands as channels not
        """
        _check(raw)
        where = [list(BANDS).index(band) for band in raw.bands]
        limits = torch.tensor(list(BANDS.values()))[where][:, None, None]
        flux = cropped(torch.as_tensor(raw.flux, dtype=torch.float32))
        flux = flux.clamp(-limits, limits) / SCALES[_survey(raw.bands)]
        squeezed = torch.arcsinh(flux / self.range) * self.range * self.factor
        full = torch.zeros(len(flux), len(BANDS), SIDE, SIDE)
        full[:, where] = squeezed
        x = math.sqrt(len(BANDS) / len(where)) * over_channels(self.subsample_in, full)
        return self.pre_quant_proj(self.model.encode(x)).flatten(2)

    def tokenize(self, raw: SkyImage) -> Tensor:
        """Tokens int64[B, 576] of an image, cut to its central 96 x 96 pixels."""
        tokens: Tensor = self.quantizer(self.latents(raw)).tokens
        return tokens

    @torch.no_grad()
    def channels(self, tokens: Tensor) -> Tensor:
        """All nine channels of tokens, still in the compressed range: float[B, 9, 96, 96]."""
        values = self.values(tokens, "an image")
        return over_channels(self.subsample_out, self.model.decode(self.post_quant_proj(values)))

    def detokenize(self, tokens: Tensor, *, bands: Sequence[str] = (), **options: Any) -> SkyImage:
        """The image of tokens in the bands that are asked for.

        Raises:
            ConfigError: no bands, or unknown ones; tokens do not tell of which survey they are
        """
        if not bands:
            raise ConfigError(
                f"tokens do not tell their bands: give bands=, of one survey out of {list(BANDS)}"
            )
        _check_bands(bands)
        flux = torch.sinh(self.channels(tokens) / self.factor / self.range) * self.range
        where = [list(BANDS).index(band) for band in bands]
        return SkyImage(flux[:, where] * SCALES[_survey(bands)], tuple(bands))


class Autoencoder(nn.Module):
    """Convolutions down to a quarter of the edge, and back."""

    def __init__(self, weights: Mapping[str, Tensor], place: str) -> None:
        super().__init__()
        self.conv_in = Conv(weights, f"{place}.conv_in")
        self.encoder_layers = _layers(weights, f"{place}.encoder_layers", halves=True)
        self.decoder_layers = _layers(weights, f"{place}.decoder_layers", halves=False)
        self.conv_out = Conv(weights, f"{place}.conv_out")

    def encode(self, x: Tensor) -> Tensor:
        """[B, C, 96, 96] -> [B, D, 24, 24]."""
        made: Tensor = self.encoder_layers(self.conv_in(x))
        return made

    def decode(self, x: Tensor) -> Tensor:
        """[B, D, 24, 24] -> [B, C, 96, 96]."""
        made: Tensor = self.conv_out(self.decoder_layers(x))
        return made


def _layers(weights: Mapping[str, Tensor], place: str, *, halves: bool) -> nn.Sequential:
    return nn.Sequential(*(_layer(weights, p, halves) for p in numbered(weights, place)))


def _layer(weights: Mapping[str, Tensor], place: str, halves: bool) -> nn.Module:
    """What a layer is follows from the names of its weights."""
    if f"{place}.net.4.to_k.weight" in weights:
        return Unit(weights, place)
    if f"{place}.net.0.weight" in weights:
        return Double(weights, place)
    if f"{place}.conv.weight" in weights:
        outs, ins = weights[f"{place}.conv.weight"].shape[:2]
        return Conv(weights, place, stride=2 if halves and outs == 2 * ins else 1)
    if f"{place}.1.weight" in weights and weights[f"{place}.1.weight"].ndim == 1:
        return ChannelNorm(weights[f"{place}.1.weight"].shape[0])
    return nn.Sequential(*(Unit(weights, p) for p in numbered(weights, place)))


def cropped(x: Tensor, side: int = SIDE) -> Tensor:
    """The central square of [..., H, W].

    Raises:
        ShapeError: it is smaller
    """
    height, width = x.shape[-2:]
    if min(height, width) < side:
        raise ShapeError(f"expected at least {side} x {side} pixels, got {height} x {width}")
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def _check(raw: SkyImage) -> None:
    _check_bands(raw.bands)
    if raw.flux.ndim != 4 or raw.flux.shape[1] != len(raw.bands):
        raise ShapeError(
            f"{len(raw.bands)} bands need flux [B, {len(raw.bands)}, H, W], got "
            f"{list(raw.flux.shape)}"
        )


def _check_bands(bands: Sequence[str]) -> None:
    check_choice("a band", *bands, of=BANDS)
    if not bands or len(set(bands)) < len(bands) or len({b.split("-")[0] for b in bands}) > 1:
        raise ConfigError(f"an image has bands of one survey, each once, got {list(bands)}")


def _survey(bands: Sequence[str]) -> str:
    return bands[0].split("-")[0]


def read_image(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ImageCodec:
    """The codec of a folder."""
    return built(lambda: ImageCodec(config, weights), weights, "image codec", unused=[LEVELS])


class ScalarFieldCodec(_Squares):
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
        values = self.values(tokens, "a map")
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
    make = lambda: ScalarFieldCodec(config, weights)  # noqa: E731
    return built(make, weights, "field codec", unused=[LEVELS])
