"""How a diffusion decoder is used: sampling an image from latents, and one training step.

Guidance runs the conditioned and the unconditioned pass as one batch. Noise is drawn on the CPU
(or on the generator's device), so that a seed gives the same image on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.diffusion import (
    Denoiser,
    NoiseSchedule,
    Spacing,
    make_scheduler,
    sample_ddim,
    sample_dpm,
    sample_with,
)
from fourm_lite.tokenization.vq.randomness import rand, randint, randn
from fourm_lite.tokenization.vq.unet import PatchedUNet
from fourm_lite.tokenization.vq.uvit import UViT

FAST, FAST_STEPS, USUAL_STEPS = "dpm++", 8, 25


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """How an image is sampled; read by diffusion decoders only.

    Shapes:
        noise: float[B, C, *size], the starting point; drawn with `generator` where None
    Units:
        steps: network passes; by default 8 of 'dpm++', 25 of any other
        size: pixels (height, width); by default the token grid times the patch size
        guidance: 1 is none; above, the prediction moves away from the unconditioned one
        spacing: of DDIM's steps; 'trailing' by default
        scheduler: 'dpm++' and 'ddim' (written here), 'ddpm', the name of a scheduler class of
            `diffusers`, or an object of one; by default 'dpm++', and 'ddim' where a spacing is
            given
    """

    steps: int | None = None
    guidance: float = 1.0
    spacing: Spacing | None = None
    scheduler: Any = None
    size: tuple[int, int] | None = None
    noise: Tensor | None = None
    generator: torch.Generator | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Denoising:
        """Reads keyword options.

        Raises:
            ConfigError: there is no such option
        """
        check_choice("a decoding option", *options, of=[f.name for f in fields(cls)])
        return cls(**options)


def make_diffusion_decoder(config: TokenizerConfig) -> PatchedUNet | UViT:
    """The network that a config's `dec_type` names."""
    if config.n_labels is not None:
        raise ConfigError(
            "a diffusion decoder denoises real values; label maps (n_labels) have none"
        )
    return UViT(config) if str(config.dec_type).startswith("uvit") else PatchedUNet(config)


def sample(
    decoder: PatchedUNet | UViT,
    latents: Tensor,
    config: TokenizerConfig,
    schedule: NoiseSchedule,
    options: Denoising,
) -> Tensor:
    """Images from latents: float[B, latent_dim, Hq, Wq] -> float[B, C, H, W]."""
    noise = _starting_noise(decoder, latents, config, options)
    denoise = _denoiser(decoder, latents, options.guidance)
    scheduler, steps = options.scheduler, options.steps
    if scheduler is None:
        scheduler = FAST if options.spacing is None else "ddim"
    if steps is None:
        steps = FAST_STEPS if isinstance(scheduler, str) and scheduler == FAST else USUAL_STEPS
    if isinstance(scheduler, str) and scheduler == FAST:
        return sample_dpm(denoise, noise, schedule, steps=steps)
    if isinstance(scheduler, str) and scheduler == "ddim":
        spacing = options.spacing or "trailing"
        return sample_ddim(denoise, noise, schedule, steps=steps, spacing=spacing)
    if isinstance(scheduler, str):
        name = "DDPMScheduler" if scheduler == "ddpm" else scheduler
        scheduler = make_scheduler(schedule, name)
    return sample_with(scheduler, denoise, noise, steps=steps, generator=options.generator)


def training_pair(
    decoder: nn.Module,
    x: Tensor,
    latents: Tensor,
    config: TokenizerConfig,
    schedule: NoiseSchedule,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The decoder's prediction on randomly noised images, and what it should have been."""
    steps = randint(len(schedule), len(x), generator).to(x.device)
    noise = randn(tuple(x.shape), generator).to(x)
    removed = _dropped_condition(latents, config, generator)
    prediction = decoder(schedule.add_noise(x, noise, steps), steps, latents, removed)
    return prediction, schedule.target(x, noise, steps)


def _denoiser(decoder: nn.Module, latents: Tensor, guidance: float) -> Denoiser:
    def plain(noised: Tensor, timesteps: Tensor) -> Tensor:
        return decoder(noised.to(latents.dtype), timesteps, latents).to(noised.dtype)

    def guided(noised: Tensor, timesteps: Tensor) -> Tensor:
        twice = torch.cat([noised, noised]).to(latents.dtype)
        both = decoder(twice, torch.cat([timesteps, timesteps]), doubled, removed)
        given, free = both.to(noised.dtype).chunk(2)
        return free + guidance * (given - free)

    if guidance == 1.0:
        return plain
    doubled = torch.cat([latents, latents])
    removed = torch.arange(len(doubled), device=latents.device) >= len(latents)
    removed = removed[:, None, None].expand(-1, *latents.shape[-2:])
    return guided


def _starting_noise(
    decoder: PatchedUNet | UViT, latents: Tensor, config: TokenizerConfig, options: Denoising
) -> Tensor:
    height, width = options.size or tuple(config.patch_size * n for n in latents.shape[-2:])
    multiple = decoder.preset.multiple
    if height % multiple or width % multiple:
        raise ShapeError(
            f"this decoder makes images whose sides are multiples of {multiple}, "
            f"got {height}x{width}; pass size=(height, width) or other tokens"
        )
    shape = (len(latents), config.out_channels, height, width)
    noise = options.noise
    if noise is None:
        noise = randn(shape, options.generator)
    elif tuple(noise.shape) != shape:
        raise ShapeError(f"noise expects shape {list(shape)}, got {list(noise.shape)}")
    return noise.to(latents.device, torch.float32)


def _dropped_condition(
    latents: Tensor, config: TokenizerConfig, generator: torch.Generator | None
) -> Tensor | None:
    """Where training hides the condition: all tokens of some samples, or some of their tokens."""
    if config.cls_free_guidance_dropout == 0.0:
        return None
    batch, _, height, width = latents.shape
    chosen = rand((batch,), generator).cpu() < config.cls_free_guidance_dropout
    hidden = torch.ones(batch, height * width, dtype=torch.bool)
    if config.masked_cfg:
        low, high = config.masked_cfg_low, config.masked_cfg_high or height * width
        counts = low + (rand((batch, 1), generator).cpu() * (high - low + 1)).long()
        ranks = rand((batch, height * width), generator).cpu().argsort(dim=1).argsort(dim=1)
        hidden = ranks < counts
    return (chosen[:, None] & hidden).reshape(batch, height, width).to(latents.device)
