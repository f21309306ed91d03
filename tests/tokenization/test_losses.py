"""Losses of reconstructions: where they vanish, what they ignore."""

from __future__ import annotations

import pytest
import torch

from fourm_lite.errors import ConfigError
from fourm_lite.training.losses import LOSSES, reconstruction_loss


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "cosine", "cosine_1d"])
def test_a_perfect_reconstruction_costs_nothing(generator, name):
    x = torch.randn(2, 5, 4, 3, generator=generator)

    assert reconstruction_loss(name)(x, x).abs() < 1e-6
    assert reconstruction_loss(name)(x + 1, x) > 1e-3


@pytest.mark.parametrize("name", ["cosine", "cosine_1d"])
def test_cosine_losses_ignore_length(generator, name):
    x, y = torch.randn(2, 2, 5, 4, 3, generator=generator)
    loss = LOSSES[name]

    assert torch.allclose(loss(3 * x, y), loss(x, y), atol=1e-6)


def test_the_two_cosines_compare_places_and_channels(generator):
    x = torch.randn(2, 5, 4, 3, generator=generator)
    each_place = x * torch.rand(2, 1, 4, 3, generator=generator)
    each_channel = x * torch.rand(2, 5, 1, 1, generator=generator)

    assert LOSSES["cosine_1d"](each_place, x).abs() < 1e-6
    assert LOSSES["cosine"](each_channel, x).abs() < 1e-6
    assert LOSSES["cosine"](each_place, x) > 1e-3
    assert LOSSES["cosine_1d"](each_channel, x) > 1e-3


def test_the_mask_loss_falls_with_the_right_logit_and_is_symmetric(generator):
    mask = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float()
    loss = LOSSES["binary_cross_entropy"]
    values = [float(loss(s * (2 * mask - 1), mask)) for s in (-9.0, -1.0, 0.0, 1.0, 9.0)]

    assert values == sorted(values, reverse=True)
    assert torch.allclose(loss(mask, mask), loss(-mask, 1 - mask))


def test_an_unknown_loss_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'smooth_l1'"):
        reconstruction_loss("smoth_l1")
