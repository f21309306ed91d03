"""A moving average of the weights, which generalises better than the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fourm_lite.errors import CheckpointError, ConfigError


class Ema:
    """Averages of a model's trainable parameters; all else (buffers) stays the model's own.

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
