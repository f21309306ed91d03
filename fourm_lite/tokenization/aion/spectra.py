"""Spectra to tokens: one for the flux's scale, then one for every 32 pixels of a fixed grid.

The scale is rounded up to the next entry of its table. What lies outside of the observed range is 0
before encoding; outside of the fixed grid a decoded flux is the scale itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.errors import ShapeError
from fourm_lite.tokenization.aion.layers import ConvNeXt, built, numbered, over_channels
from fourm_lite.tokenization.vq.finite import Signs
from fourm_lite.tokenization.vq.inputs import tokens_in

LEAST = 0.1
GRID, TABLE = "latent_grid._wavelength", "normalization_quantizer.buckets"


@dataclass(frozen=True)
class Spectrum:
    """Spectra, all float[B, N]: flux, inverse variance, bad pixels (bool), rising wavelength."""

    flux: Tensor
    ivar: Tensor
    mask: Tensor
    wavelength: Tensor


class SpectrumCodec(nn.Module):
    """The network of `codecs/spectrum`."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.scaling = float(config["input_scaling"])
        self.limits = {key: config[f"clip_{key}"] for key in ("flux", "ivar")}
        self.grid, self.table = weights[GRID], weights[TABLE]
        self.quantizer = Signs(int(config["dim"]))
        self.encoder = Encoder(weights)
        width = weights["pre_quant_norm.weight"].shape[0]
        self.pre_quant_norm = nn.LayerNorm(width)
        self.quant_conv = _conv(weights, "quant_conv", 1)
        self.post_quant_conv = _conv(weights, "post_quant_conv", 1)
        self.decoder = Decoder(weights)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, of the scale as of the pixels."""
        return len(self.table)

    def scale_codes(self, raw: Spectrum) -> Tensor:
        """The token of each spectrum's scale, int64[B]."""
        flux, good = self._clipped(raw)[0], ~raw.mask.bool()
        mean = ((flux * good).sum(-1) / (good.sum(-1) + 1.0)).clamp(LEAST)
        codes = torch.bucketize(torch.log10(mean + 1), self.table)
        return codes.clamp(0, len(self.table) - 1)

    @torch.no_grad()
    def latents(self, raw: Spectrum) -> Tensor:
        """What is quantized: float[B, d, L]."""
        _check(raw)
        flux, ivar = self._clipped(raw)
        scale = self._scale(self.scale_codes(raw))
        grid = self.grid.expand(len(flux), -1)
        wave = torch.as_tensor(raw.wavelength, dtype=torch.float32)
        rows = ((flux / scale - 1) * self.scaling, ivar.sqrt() / scale * self.scaling)
        x = torch.stack([interpolated(wave, row, grid) for row in rows], dim=1).arcsinh()
        return self.quant_conv(over_channels(self.pre_quant_norm, self.encoder(x)))

    def tokenize(self, raw: Spectrum) -> Tensor:
        """Tokens int64[B, 1 + L]: the scale, then the pixels."""
        pixels = self.quantizer(self.latents(raw)).tokens
        return torch.cat([self.scale_codes(raw)[:, None], pixels], dim=1)

    @torch.no_grad()
    def detokenize(
        self, tokens: Tensor, *, wavelength: Tensor | None = None, **options: Any
    ) -> Spectrum:
        """Spectra on the fixed grid, or at given wavelengths float[B, N]; ivar is 1."""
        ids = tokens_in(tokens, self.vocab_size)
        x = self.decoder(self.post_quant_conv(self.quantizer.lookup(ids[:, 1:])))
        values = x[:, 0]
        scores = x[:, 1] if x.shape[1] > 1 else torch.full_like(values, -torch.inf)
        grid = self.grid.expand(len(ids), -1)
        if wavelength is not None:
            wave = torch.as_tensor(wavelength, dtype=torch.float32)
            values, scores = (interpolated(grid, row, wave) for row in (values, scores))
            grid = wave
        flux = (values + 1) * self._scale(ids[:, 0])
        return Spectrum(flux, torch.ones_like(flux), scores.sigmoid().round().bool(), grid)

    def _scale(self, codes: Tensor) -> Tensor:
        return (10 ** self.table[codes] - 1).clamp(LEAST)[:, None]

    def _clipped(self, raw: Spectrum) -> tuple[Tensor, Tensor]:
        flux, ivar = (
            torch.as_tensor(v, dtype=torch.float32).nan_to_num() for v in (raw.flux, raw.ivar)
        )
        if self.limits["flux"] is not None:
            flux = flux.clamp(-self.limits["flux"], self.limits["flux"])
        return flux, ivar if self.limits["ivar"] is None else ivar.clamp(0, self.limits["ivar"])


class Encoder(nn.Module):
    """Four stages, each halving (the first quartering) the length."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        downs = numbered(weights, "encoder.downsample_layers")
        self.downsample_layers = nn.ModuleList(
            _step(weights, place, stride=4 if i == 0 else 2, first=i == 0, grows=False)
            for i, place in enumerate(downs)
        )
        self.stages = _stages(weights, "encoder.stages", len(downs))
        self.norm = nn.LayerNorm(weights["encoder.norm.weight"].shape[0], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, N] -> [B, C, L]."""
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return over_channels(self.norm, x)


class Decoder(nn.Module):
    """The same way back, the last stage fourfold."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        ups = numbered(weights, "decoder.upsample_layers")
        self.upsample_layers = nn.ModuleList(
            _step(weights, place, stride=4 if i == len(ups) - 1 else 2, first=i == 0, grows=True)
            for i, place in enumerate(ups)
        )
        self.stages = _stages(weights, "decoder.stages", len(ups))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, 1 or 2, N]."""
        for up, stage in zip(self.upsample_layers, self.stages, strict=True):
            x = stage(up(x))
        return x


class Norm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, L]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> the same."""
        return over_channels(super().forward, x)  # type: ignore[arg-type]


def _conv(weights: Mapping[str, Tensor], place: str, stride: int) -> nn.Conv1d:
    outs, ins, kernel = weights[f"{place}.weight"].shape
    return nn.Conv1d(ins, outs, kernel, stride)


def _step(
    weights: Mapping[str, Tensor], place: str, *, stride: int, first: bool, grows: bool
) -> nn.Sequential:
    """A change of length with a norm: behind it in the first stage, before it in the others."""
    conv, norm = (f"{place}.0", f"{place}.1") if first else (f"{place}.1", f"{place}.0")
    if grows:
        ins, outs, kernel = weights[f"{conv}.weight"].shape
        change: nn.Module = nn.ConvTranspose1d(ins, outs, kernel, stride)
    else:
        change = _conv(weights, conv, stride)
    parts = [change, Norm(weights[f"{norm}.weight"].shape[0])]
    return nn.Sequential(*(parts if first else parts[::-1]))


def _stages(weights: Mapping[str, Tensor], place: str, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(*(ConvNeXt(weights, p) for p in numbered(weights, f"{place}.{i}")))
        for i in range(count)
    )


def interpolated(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Linear interpolation of float[B, N] at float[B, M]; 0 outside of the given range."""
    below = (torch.searchsorted(x.contiguous(), new.contiguous()) - 1).clamp(0, x.shape[1] - 2)
    slope = (y[:, :-1] - y[:, 1:]) / (x[:, :-1] - x[:, 1:])
    found = y.gather(1, below) + (new - x.gather(1, below)) * slope.gather(1, below)
    return torch.where((new < x[:, :1]) | (new > x[:, -1:]), 0.0, found)


def _check(raw: Spectrum) -> None:
    shapes = {tuple(getattr(raw, name).shape) for name in ("flux", "ivar", "mask", "wavelength")}
    if len(shapes) > 1 or raw.flux.ndim != 2 or raw.flux.shape[1] < 2:
        raise ShapeError(
            f"flux, ivar, mask and wavelength of spectra are all [B, N], got {sorted(shapes)}"
        )


def read_spectrum(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> SpectrumCodec:
    """The codec of a folder."""
    tables = ("latent_grid.", "normalization_quantizer.", "_quantizer.")
    make = lambda: SpectrumCodec(config, weights)  # noqa: E731
    return built(make, weights, "spectrum codec", unused=tables)
