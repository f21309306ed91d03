"""Noise schedules and the sampling loops of diffusion decoders.

Unusual: DDIM steps are written here, because they take the next time step as an argument: any
number of steps then gives exactly that many, at matching strides. The original computes a stride
of its own, which fits only numbers that divide the schedule (30 steps give 31); the spacings
`original-*` repeat that. Every other sampler is a scheduler of `diffusers`, imported where it is
used.

Source:
    Denoising Diffusion Implicit Models (Song et al. 2021), eta = 0; Progressive Distillation
    (Salimans & Ho 2022) for v; zero terminal SNR: Common Diffusion Noise Schedules are Flawed
    (Lin et al. 2024); shifted cosine: simple diffusion (Hoogeboom et al. 2023)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fourm_lite.errors import ConfigError, check_choice, suggest
from fourm_lite.tokenization.vq.config import PredictionType, TokenizerConfig

Spacing = Literal[
    "trailing", "linspace", "leading",
    "original-trailing", "original-linspace", "original-leading",
]  # fmt: skip
# Predicts from a noised image and its time steps int64[B]
Denoiser = Callable[[Tensor, Tensor], Tensor]

BETA_START, BETA_END = 1e-4, 0.02
LOG_SNR_LIMIT = 15.0
CLEAN, NOISY = 0.01, -5.0
"""The share of the schedule and the log-SNR between which the steps of `sample_dpm` lie."""
NARROWING = 0.8
"""How they narrow toward the clean end: 1 is even steps in log-SNR (docs/performance.md)."""
LEAST_SIGNAL = 2.0**-24  # for samplers that divide by the signal; as in diffusers


def _linear(steps: int) -> Tensor:
    return torch.linspace(BETA_START, BETA_END, steps, dtype=torch.float32)


def _scaled_linear(steps: int) -> Tensor:
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, steps, dtype=torch.float32) ** 2


def _squared_cosine(steps: int) -> Tensor:
    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - left((i + 1) / steps) / left(i / steps) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float32).clamp(max=0.999)


def _sigmoid(steps: int) -> Tensor:
    return torch.linspace(-6, 6, steps).sigmoid() * (BETA_END - BETA_START) + BETA_START


BETA_SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
    "sigmoid": _sigmoid,
}
SHIFTED = "shifted_cosine:"


def alphas_cumprod(name: str, steps: int = 1000, *, zero_terminal_snr: bool = True) -> Tensor:
    """How much signal is left at each time step, as variance: float32[steps].

    `name` is one of BETA_SCHEDULES or 'shifted_cosine:<shift>', which always ends without signal.

    Raises:
        ConfigError: no such schedule
    """
    if name.startswith(SHIFTED):
        return _shifted_cosine(name, steps)
    check_choice("a noise schedule", name, of=[*BETA_SCHEDULES, f"{SHIFTED}1.0"])
    betas = BETA_SCHEDULES[name](steps)
    kept = (1 - betas).cumprod(dim=0)
    if not zero_terminal_snr:
        return kept
    root = kept.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def _shifted_cosine(name: str, steps: int) -> Tensor:
    try:
        shift = math.log(float(name.removeprefix(SHIFTED)))
    except ValueError:
        raise ConfigError(f"expected '{SHIFTED}<positive number>', got {name!r}") from None
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    log_snr = -2 * (torch.log(torch.tan(math.pi * t / 2)) + shift)
    kept = log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).float().sigmoid()
    kept[-1] = 0.0
    return kept


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule with what the network predicts; pure arithmetic on images.

    Shapes:
        kept: float32[T], the cumulated alphas
    """

    kept: Tensor
    prediction_type: PredictionType = "v_prediction"
    clips: bool = True

    @classmethod
    def of(cls, config: TokenizerConfig) -> NoiseSchedule:
        """The schedule that a config names.

        Its 'dynamic thresholding' has 1 as its largest threshold and therefore is plain clipping.
        """
        kept = alphas_cumprod(
            config.beta_schedule,
            config.num_train_timesteps,
            zero_terminal_snr=config.zero_terminal_snr,
        )
        return cls(kept, config.prediction_type, config.thresholding or config.clip_sample)

    def __len__(self) -> int:
        return len(self.kept)

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The image at a time step: float[B, C, H, W], int64[B]."""
        signal, sigma = self._weights(x, timesteps)
        return signal * x + sigma * noise

    def target(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict."""
        if self.prediction_type == "sample":
            return x
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._weights(x, timesteps)
        return signal * noise - sigma * x

    def split(self, noised: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image and the noise that a prediction implies, the image not yet clipped."""
        signal, sigma = self._weights(noised, timesteps)
        if self.prediction_type == "sample":
            return prediction, (noised - signal * prediction) / sigma
        if self.prediction_type == "epsilon":
            return (noised - sigma * prediction) / signal, prediction
        return signal * noised - sigma * prediction, signal * prediction + sigma * noised

    def ddim_step(
        self, noised: Tensor, prediction: Tensor, timestep: int, following: int
    ) -> tuple[Tensor, Tensor]:
        """The image at the following time step (below 0: without noise), and the clean estimate.

        The direction uses the noise of the unclipped image, as in the original.
        """
        at = torch.tensor([timestep], device=noised.device)
        clean, noise = self.split(noised, prediction, at)
        if self.clips:
            clean = clean.clamp(-1, 1)
        if following < 0:
            return clean.clone(), clean
        signal, sigma = self._weights(noised, torch.tensor([following], device=noised.device))
        return signal * clean + sigma * noise, clean

    @property
    def log_snr(self) -> Tensor:
        """Half the log of signal over noise at each time step, finite: float64[T]."""
        kept = self.kept.double().cpu().clamp(2.0**-48, 1 - 2.0**-48)
        return (kept.log() - (1 - kept).log()) / 2

    def weights_at(self, timestep: int) -> tuple[float, float]:
        """How much of the image and of the noise there is at a time step."""
        kept = float(self.kept[timestep])
        return math.sqrt(kept), math.sqrt(1 - kept)

    def _weights(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept.to(like.device)[timesteps].reshape(-1, *(1,) * (like.ndim - 1))
        return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)


def timesteps_of(steps: int, total: int = 1000, spacing: Spacing = "trailing") -> list[int]:
    """Time steps from noisy to clean.

    The spacings of our own give exactly `steps` of them; 'original-*' repeats the original's
    lists, of which the trailing one is longer where `steps` does not divide `total`.

    Raises:
        ConfigError: too many steps, or no such spacing
    """
    if not 1 <= steps <= total:
        raise ConfigError(f"steps must lie in 1..{total}, got {steps}")
    check_choice("spacing", spacing, of=SPACINGS)
    return SPACINGS[spacing](steps, total)


def _even(steps: int, start: float, stride: float) -> list[int]:
    return [round(start - i * stride) for i in range(steps)]


def _linspace(steps: int, total: int) -> list[int]:
    last = total - 1  # halves are rounded as seen from the clean end
    return [last - round(i * last / max(steps - 1, 1)) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "trailing": lambda n, t: [step - 1 for step in _even(n, t, t / n)],
    "linspace": _linspace,
    "leading": lambda n, t: _even(n, (n - 1) * t / n, t / n),
    "original-trailing": lambda n, t: [step - 1 for step in range(t, 0, -(t // n))],
    "original-linspace": lambda n, t: _linspace(n, t),
    "original-leading": lambda n, t: [i * (t // n) for i in reversed(range(n))],
}


def ddim_pairs(steps: int, total: int, spacing: Spacing) -> list[tuple[int, int]]:
    """Each time step with the one that follows; -1 means clean."""
    times = timesteps_of(steps, total, spacing)
    if spacing.startswith("original-"):
        return [(t, max(t - total // steps, -1)) for t in times]
    return list(zip(times, [*times[1:], -1], strict=True))


def sample_ddim(
    denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, *, steps: int, spacing: Spacing
) -> Tensor:
    """An image from noise by deterministic steps: float[B, C, H, W] -> the same."""
    x = noise
    for timestep, following in ddim_pairs(steps, len(schedule), spacing):
        at = torch.full((len(x),), timestep, device=x.device)
        x, _ = schedule.ddim_step(x, denoise(x, at), timestep, following)
    return x


def sample_dpm(denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, *, steps: int) -> Tensor:
    """An image from noise by second-order steps in log-SNR; the last estimate is the image.

    Eight of them are nearer to 100 DDIM steps than 25 DDIM steps are, on every schedule: wide steps
    where there is hardly any signal, narrower ones where the details are decided. Schedules that
    end without signal, on which the schedulers of `diffusers` fail at such times, are stepped
    through too. A clipped estimate moves the image as in `ddim_step`.

    Source:
        DPM-Solver++ (Lu et al. 2022), Algorithm 2 (2M)
    """
    log_snr = schedule.log_snr
    times = log_snr_times(steps, log_snr)
    x, before = noise, None
    for timestep, following in itertools.pairwise(times):
        clean, made = _estimates(denoise, x, schedule, timestep)
        width = float(log_snr[following] - log_snr[timestep])
        ahead = clean
        if before is not None:
            ahead = clean + (clean - before[0]) * (width / (2 * before[1]))
        before = clean, width
        here, noise_here = schedule.weights_at(timestep)
        signal, sigma = schedule.weights_at(following)
        x = sigma * (here / noise_here * clean + made) - signal * math.expm1(-width) * ahead
    return _estimates(denoise, x, schedule, times[-1])[0]


def log_snr_times(steps: int, log_snr: Tensor) -> list[int]:
    """Time steps from the noisiest to nearly clean, at most `steps`, in narrowing log-SNR steps.

    Raises:
        ConfigError: too many steps
    """
    total = len(log_snr)
    timesteps_of(steps, total)
    first, last = max(float(log_snr[-1]), NOISY), float(log_snr[max(round(CLEAN * total) - 1, 0)])
    wanted = first + (last - first) * torch.linspace(0, 1, steps).double()[1:] ** NARROWING
    nearest = {int((log_snr - value).abs().argmin()) for value in wanted}
    return [total - 1, *sorted(nearest - {total - 1}, reverse=True)]


def _estimates(
    denoise: Denoiser, x: Tensor, schedule: NoiseSchedule, timestep: int
) -> tuple[Tensor, Tensor]:
    """The clean image, clipped where the schedule says so, and the noise of the unclipped one."""
    at = torch.full((len(x),), timestep, device=x.device)
    clean, made = schedule.split(x, denoise(x, at), at)
    return (clean.clamp(-1, 1) if schedule.clips else clean), made


def make_scheduler(schedule: NoiseSchedule, name: str = "DDPMScheduler", **options: Any) -> Any:
    """A scheduler of `diffusers` on this noise schedule.

    Raises:
        ConfigError: diffusers has no scheduler of that name
    """
    import inspect

    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None or not name.endswith("Scheduler"):
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise ConfigError(f"diffusers has no scheduler {name!r}.{suggest(name, known)}")
    kept = schedule.kept.double().clamp(min=LEAST_SIGNAL)
    ratios = kept / torch.cat([kept.new_ones(1), kept[:-1]])
    settings = {
        "num_train_timesteps": len(kept),
        "trained_betas": (1 - ratios).tolist(),
        "prediction_type": schedule.prediction_type,
        "clip_sample": schedule.clips,
    }
    accepted = inspect.signature(kind.__init__).parameters
    scheduler = kind(**{k: v for k, v in settings.items() if k in accepted}, **options)
    if not hasattr(scheduler, "sigmas"):
        # Products of float32 betas drift from these; the others derive their noise levels at once
        scheduler.alphas_cumprod = schedule.kept.clone()
    return scheduler


def sample_with(
    scheduler: Any,
    denoise: Denoiser,
    noise: Tensor,
    *,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    """An image from noise by any scheduler of `diffusers`; the scheduler's state is changed."""
    import inspect

    scheduler.set_timesteps(steps, device=noise.device)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        at = timestep.to(noise.device).expand(len(x))
        prediction = denoise(scheduler.scale_model_input(x, timestep), at)
        x = scheduler.step(prediction, timestep, x, **extra).prev_sample
    return x
