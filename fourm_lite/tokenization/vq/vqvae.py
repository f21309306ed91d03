"""VQ tokenizers: an encoder, a quantizer, and a decoder that predicts directly or by diffusion.

Unusual: one class serves all of 4M's (VQ, VQVAE, DiVAE, and the encoder of VQControlNet); the
config says which. Only the training step `forward` changes the codebook. Attribute names are 4M's
keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.io.push import HubMixin
from fourm_lite.nn.device import ALL_FROM, threads_for
from fourm_lite.tokenization.vq.backbones import BottleneckMLP, make_decoder, make_encoder
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.denoising import (
    Denoising,
    make_diffusion_decoder,
    sample,
    training_pair,
)
from fourm_lite.tokenization.vq.diffusion import NoiseSchedule
from fourm_lite.tokenization.vq.finite import FiniteScalar
from fourm_lite.tokenization.vq.inputs import (
    Quantized,
    as_tensor,
    check_finite,
    checked_values,
    flat_grid,
    tokens_as_map,
    undone_std,
)
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.quantize import VectorQuantizer
from fourm_lite.tokenization.vq.unet import PatchedUNet
from fourm_lite.tokenization.vq.uvit import UViT

# One convolution of UViT decoders is stored under two names; a file may hold either
TWINS = ((".downsample_mid.conv.", ".downsample_mid.Conv2d_0."),)


@dataclass(frozen=True)
class Reconstruction:
    """One training step: compare `output` with `target`, then add the quantizer's loss.

    Shapes:
        output: float[B, C, H, W]
        target: the same, or int64[B, H, W] for label maps; for diffusion what the network predicts
    """

    output: Tensor
    target: Tensor
    quantized: Quantized


def _finite(config: TokenizerConfig) -> FiniteScalar:
    assert config.levels is not None
    return FiniteScalar(config.levels, "sigmoid")


QUANTIZERS: dict[str, Callable[[TokenizerConfig], Any]] = {
    "lucid": VectorQuantizer,
    "memcodes": Memcodes,
    "fsq": _finite,
}


class VQTokenizer(HubMixin, nn.Module):
    """Raw values to tokens and back.

    Shapes:
        values: float[B, C, H, W], int[B, H, W] label maps, or float[B, C] vectors
        tokens: int64[B, Hq, Wq], int64[B, heads, Hq, Wq] with several codebooks; for vectors flat
    """

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.unused_weights: tuple[str, ...] = ()
        self._schedule: NoiseSchedule | None = None
        if config.n_labels is not None:
            self.cls_emb = nn.Embedding(config.n_labels, config.n_channels)
        self.encoder, dim = make_encoder(config)
        self.quant_proj = nn.Conv2d(dim, config.latent_dim, 1)
        self.quantize = QUANTIZERS[config.quant_type](config)
        if config.kind == "DiVAE":
            self.decoder: nn.Module = make_diffusion_decoder(config)
        elif config.kind == "VQVAE":
            self.decoder, dim = make_decoder(config)
            self.post_quant_proj = nn.Conv2d(config.latent_dim, dim, 1)
        if config.is_centered:
            self.register_buffer("input_mean", torch.tensor(config.mean or (0.0,)))
            self.register_buffer("input_scale", torch.tensor(config.scale or 1.0))

    @property
    def vocab_size(self) -> int:
        """How many ids a token can take."""
        return self.config.codebook_size

    @property
    def dtype(self) -> torch.dtype:
        """The type the network computes in."""
        return self.quant_proj.weight.dtype

    # Values to tokens

    def latents(self, x: Tensor) -> Tensor:
        """What is quantized: float[B, latent_dim, Hq, Wq] of raw values."""
        prepared = self._prepared(checked_values(x, self.config))
        with threads_for(_rows(prepared)):
            return self._project(prepared)

    def encode(self, x: Tensor) -> Quantized:
        """Raw values as code vectors and tokens; never changes the codebook."""
        return self.quantize(self.latents(x))

    # no_grad, not inference_mode: tokens made on the fly are targets and indices of training steps
    @torch.no_grad()
    def tokenize(self, x: Tensor | npt.NDArray[Any]) -> Tensor:
        """Tokens of raw values, in the original's shape; of vectors int64[B, heads].

        Raises:
            ShapeError: another shape or kind of number, NaN or infinite values
        """
        x = as_tensor(x)
        check_finite(x)
        tokens = self.encode(x).tokens
        return tokens.flatten(1) if x.ndim == 2 else tokens

    def tokenize_flat(self, x: Tensor | npt.NDArray[Any]) -> Tensor:
        """Tokens as one row a sample, as a 4M model takes them: int64[B, L]."""
        return self.tokenize(x).flatten(1)

    # Tokens to values

    @torch.no_grad()
    def detokenize(
        self,
        tokens: Tensor | npt.NDArray[Any],
        *,
        grid: tuple[int, int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Raw values of tokens, as a map or flat; `options` are those of `Denoising`.

        Flat tokens lie on `grid` (height, width); by default on the config's grid, or a square.
        Flat tokens of one place, as those of global embeddings, give vectors float[B, C].
        """
        decoded = self.decode(self.lookup(tokens, grid=grid), **options)
        is_vector = isinstance(self.decoder, BottleneckMLP) and decoded.shape[-2:] == (1, 1)
        return decoded.flatten(1) if tokens.ndim == 2 and is_vector else decoded

    def lookup(
        self, tokens: Tensor | npt.NDArray[Any], *, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Code vectors of tokens, as a map or flat: float[B, latent_dim, Hq, Wq]."""
        return self.quantize.lookup(tokens_as_map(tokens, self.config, grid))

    def expected_latents(self, probs: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        """The mean code vector under a predicted distribution over codes, ready for `decode`.

        Shapes:
            probs: float[B, L, V], flat in the order of `tokenize_flat`, rows that sum to 1
            returns: float[B, latent_dim, Hq, Wq]
        """
        probs = as_tensor(probs)
        if probs.ndim != 3 or probs.shape[-1] != self.vocab_size:
            raise ShapeError(
                f"expected probabilities float[B, L, {self.vocab_size}], got {list(probs.shape)}"
            )
        height, width = flat_grid(probs.shape[1], self.config, grid)
        by_head = rearrange(probs, "b (n l) v -> b n l v", n=self.config.num_codebooks)
        mean = self.quantize.expected(by_head)
        return rearrange(mean, "b d (h w) -> b d h w", h=height, w=width)

    def decode(self, latents: Tensor, **options: Any) -> Tensor:
        """Raw values of latents; `options` are those of `Denoising` and read by diffusion only.

        Raises:
            ConfigError: this tokenizer has no decoder, or there is no such option
        """
        self._check_decodes()
        chosen = Denoising.of(options)
        latents = latents.to(self.dtype)
        if not self.config.is_diffusion:
            with threads_for(_rows(latents)):
                return self._restored(self.decoder(self.post_quant_proj(latents)))
        assert isinstance(self.decoder, PatchedUNet | UViT)
        with torch.no_grad():  # a graph over all steps would fill the memory
            image = sample(self.decoder, latents, self.config, self.schedule, chosen)
        return self._restored(image)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of a diffusion decoder."""
        if self._schedule is None:  # not in the constructor, which may run without storage
            self._schedule = NoiseSchedule.of(self.config)
        return self._schedule

    # Training

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Reconstruction:
        """One training step on raw values; in train mode the codebook moves.

        `generator` draws what is random: dead codes' replacements, Gumbel noise, diffusion.
        """
        self._check_decodes()
        values = checked_values(x, self.config)
        prepared = self._prepared(values)
        quantized = self._quantized_for_training(prepared, generator)
        latents = quantized.latents
        if self.config.is_diffusion:
            output, target = training_pair(
                self.decoder, prepared, latents, self.config, self.schedule, generator
            )
            return Reconstruction(output, target, quantized)
        output = self.decoder(self.post_quant_proj(latents))
        target = values if self.config.n_labels is not None else prepared
        return Reconstruction(output, target, quantized)

    def _quantized_for_training(
        self, prepared: Tensor, generator: torch.Generator | None
    ) -> Quantized:
        frozen = self.config.freeze_enc
        with torch.no_grad() if frozen else contextlib.nullcontext():
            latents = self._project(prepared)
            return self.quantize(latents, update=self.training and not frozen, generator=generator)

    # Checkpoints

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `load_tokenizer` reads."""
        from fourm_lite.io.checkpoint import write

        weights = {
            name: value.detach().contiguous()
            for name, value in self.state_dict().items()
            if not any(twin in f".{name}" for _, twin in TWINS)
        }
        write(Path(folder), self.config.to_dict(), weights)

    def _check_decodes(self) -> None:
        if self.config.kind == "VQControlNet":
            raise ConfigError(
                "a VQControlNet decodes with Stable Diffusion, whose weights are not part of its "
                "checkpoint and not supported here; it can tokenize"
            )
        if not self.config.has_decoder:
            raise ConfigError("this tokenizer is an encoder only (class 'VQ'); it can tokenize")

    def _prepared(self, values: Tensor) -> Tensor:
        """Checked values as the encoder takes them: float[B, C, H, W]."""
        if self.config.n_labels is not None:
            return rearrange(self.cls_emb(values), "b h w c -> b c h w")
        x = values.to(self.dtype)
        if self.config.undo_std:
            x = undone_std(x)
        if self.config.is_centered:
            x = (x - self.input_mean[:, None, None]) * self.input_scale
        return x

    def _restored(self, x: Tensor) -> Tensor:
        """Undoes the centring of `_prepared`."""
        if not self.config.is_centered:
            return x
        return x / self.input_scale + self.input_mean[:, None, None]

    def _project(self, prepared: Tensor) -> Tensor:
        return self.quant_proj(self.encoder(prepared))


def _rows(x: Tensor) -> int:
    """Vectors count as rows; a map of several places is work for every thread."""
    return len(x) if x.shape[-2:] == (1, 1) else ALL_FROM
