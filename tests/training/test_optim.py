"""Schedules and groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.training.optim import Ema, OptimConfig, lr_factor, make_optimizer


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_every_schedule_rises_to_the_peak_and_never_above(schedule):
    config = OptimConfig(schedule=schedule, warmup_steps=10, cooldown_steps=20)

    factors = [lr_factor(s, 100, config) for s in range(101)]

    assert all(a < b for a, b in pairwise(factors[:10]))
    assert max(factors) == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_inverse_square_root_halves_when_the_step_is_fourfold():
    config = OptimConfig(schedule="inverse_sqrt", warmup_steps=100)

    assert lr_factor(400, 10**6, config) == pytest.approx(0.5 * lr_factor(100, 10**6, config))


def test_the_cosine_is_half_way_down_in_the_middle_and_ends_at_its_floor():
    config = OptimConfig(min_lr=0.1)

    assert lr_factor(50, 100, config) == pytest.approx(0.55)
    assert lr_factor(100, 100, config) == pytest.approx(0.1)


def net():
    return nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 2)})


def test_a_scale_of_zero_freezes_and_the_longest_prefix_wins():
    model = net()
    scale = {"encoder": 0.5, "encoder.bias": 0.0}

    optimizer = make_optimizer(model, OptimConfig(lr=1.0, lr_scale=scale, weight_decay=0.1))

    assert not model["encoder"].bias.requires_grad
    rates = {g["peak_lr"]: g["weight_decay"] for g in optimizer.param_groups if g["weight_decay"]}
    assert rates == {0.5: 0.1, 1.0: 0.1}
    decayed = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert all(p.ndim == 2 for p in decayed)


def test_a_prefix_that_fits_nothing_is_an_error():
    with pytest.raises(ConfigError, match="decoder"):
        make_optimizer(net(), OptimConfig(lr_scale={"decoder": 0.1}))


def test_an_average_follows_the_weights_and_gives_them_back():
    model = net()
    ema = Ema(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)

    for _ in range(200):
        ema.update(model)
    with torch.no_grad():
        model["head"].bias.fill_(5.0)
    with ema.applied(model):
        inside = model["head"].bias.clone()

    torch.testing.assert_close(inside, torch.full((2,), 3.0))
    assert torch.equal(model["head"].bias, torch.full((2,), 5.0))


def test_an_average_of_another_model_is_refused():
    with pytest.raises(CheckpointError):
        Ema(net(), 0.9).check({"other": torch.zeros(1)})
