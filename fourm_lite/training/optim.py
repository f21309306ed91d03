"""What moves the weights: parameter groups, the course of the learning rate, a moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from fourm_lite.errors import CheckpointError, ConfigError

Schedule = Literal["cosine", "inverse_sqrt", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Units:
        lr: the peak; warmup_steps, cooldown_steps: optimiser steps
        min_lr: share of the peak that the cosine ends at
        cooldown_steps: the last steps fall linearly to 0 ("inverse_sqrt" and "constant")
        clip: largest norm of the gradient, 0 for none
        lr_scale: prefix of a parameter's name -> factor on its learning rate; 0 freezes it, 1 takes
            back that of a recipe's base
        betas, eps, weight_decay: AdamW's
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    min_lr: float = 0.0
    clip: float = 0.0
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses numbers that cannot train."""
        if self.lr <= 0 or self.clip < 0 or self.weight_decay < 0:
            raise ConfigError(f"lr must be above 0, clip and weight_decay at least 0, got {self}")
        if min(self.warmup_steps, self.cooldown_steps) < 0 or not 0 <= self.min_lr <= 1:
            raise ConfigError(f"steps must be at least 0 and min_lr a share in 0..1, got {self}")


def lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """The share of the peak learning rate at a step, counted from 0.

    >>> [lr_factor(s, 8, OptimConfig(warmup_steps=4)) for s in (0, 3, 4, 8)]
    [0.25, 1.0, 1.0, 0.0]
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    factor = 1.0
    if config.schedule == "inverse_sqrt":
        start = max(1, warmup)
        factor = math.sqrt(start / max(step, start))
    left = total - step
    return factor * min(1.0, max(0, left) / config.cooldown_steps if config.cooldown_steps else 1.0)


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies: matrices yes; vectors, embeddings and tokens no."""
    return ndim >= 2 and not any(word in name for word in ("_emb", "mask_token", "register_tokens"))


def param_groups(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay; a factor of 0 turns their gradient off.

    Raises:
        ConfigError: a prefix of `lr_scale` with another factor than 1 fits no parameter
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    unused = {prefix for prefix, factor in config.lr_scale.items() if factor != 1.0}
    for name, parameter in named:
        fits = [prefix for prefix in config.lr_scale if name.startswith(prefix)]
        unused -= set(fits)
        scale = config.lr_scale[max(fits, key=len)] if fits else 1.0
        if scale == 0.0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((scale, decays(name, parameter.ndim)), []).append(parameter)
    if unused:
        raise ConfigError(f"lr_scale names {sorted(unused)}, and no parameter begins so")
    return [
        {
            "params": parameters,
            "lr": config.lr * scale,
            "peak_lr": config.lr * scale,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (scale, decay), parameters in groups.items()
    ]


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the groups of a model's parameters."""
    groups = param_groups(model.named_parameters(), config)
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen")
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Sets every group to `factor` of its peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


class Ema:
    """Averages of a model's trainable parameters, which generalise better than the last step's.

    All else (buffers) stays the model's own.

    Units:
        decay: share of the old average kept at each step; it starts lower, as (1 + t) / (10 + t)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"an EMA decay lies between 0 and 1, got {decay}")
        self.decay, self.updates = decay, 0
        self.average = {n: p.detach().clone() for n, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average toward the weights of now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in _trained(model):
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, inside the block alone."""
        own = {name: p.detach().clone() for name, p in _trained(model)}
        _fill(model, self.average)
        try:
            yield
        finally:
            _fill(model, own)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuses a saved average of other parameters.

        Raises:
            CheckpointError: it is of another model
        """
        if set(tensors) != set(self.average):
            lone = sorted(set(tensors) ^ set(self.average))
            raise CheckpointError(f"the saved average is of another model: {lone[:5]} differ")

    def take(self, model: nn.Module, updates: int) -> None:
        """Takes the weights of now for the average of so many updates."""
        self.updates = updates
        self.average = {n: p.detach().clone() for n, p in _trained(model)}


def plain_name(name: str) -> str:
    """A parameter's name without what DDP, FSDP and torch.compile put into it."""
    for part in ("module.", "_fsdp_wrapped_module.", "_orig_mod."):
        name = name.removeprefix(part) if part == "module." else name.replace(part, "")
    return name


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((plain_name(n), p) for n, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(values[name])
