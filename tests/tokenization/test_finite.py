"""Quantizers without a codebook: round trips, rounding, signs."""

from __future__ import annotations

import pytest
import torch

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.tokenization.vq.finite import BOUNDS, FiniteScalar, Signs

LEVELS = [(7, 5, 5, 5, 5), (8, 5, 5, 5), (8, 8, 8, 6, 5), (2, 3, 4), (11,)]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_and_is_its_own_code(levels, bound):
    quantizer = FiniteScalar(levels, bound)
    codes = torch.arange(quantizer.vocab_size)[None]

    values = quantizer.lookup(codes)

    assert len(torch.unique(values, dim=2).unbind(2)) == quantizer.vocab_size
    # what lies at a value's place before the bound comes back to it
    inverse = {
        "tanh": lambda v: torch.where(v.abs() < 1, v, v * 0.999).atanh() * 3,
        "sigmoid": lambda v: (v.clamp(1e-4, 1 - 1e-4)).logit(),
    }[bound]
    if bound == "sigmoid":
        assert torch.equal(quantizer(inverse(values)).tokens, codes)
    spread = quantizer(torch.linspace(-9, 9, 999)[None, None].expand(1, len(levels), -1)).tokens
    assert int(spread.min()) == 0
    assert int(spread.max()) == quantizer.vocab_size - 1


def test_gradients_go_straight_through_while_training():
    quantizer = FiniteScalar((5, 5)).train()
    z = torch.randn(1, 2, 3, 3, requires_grad=True)

    quantizer(z).latents.sum().backward()

    assert z.grad is not None
    assert bool((z.grad != 0).all())
    assert not list(quantizer.state_dict())


def test_signs_count_zero_as_negative_and_the_first_channel_highest():
    signs = Signs(3)
    z = torch.tensor([[1.0, 0.0, -2.0], [-1.0, 0.0, 3.0]]).T[None]

    found = signs(z)

    assert found.tokens.tolist() == [[4, 1]]
    assert torch.equal(signs.lookup(found.tokens), found.latents)


def test_wrong_numbers_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        FiniteScalar((5, 1))
    with pytest.raises(ConfigError, match="bound of a finite quantizer is one of"):
        FiniteScalar((5,), "relu")
    with pytest.raises(ShapeError, match="as many channels"):
        FiniteScalar((5, 5))(torch.zeros(1, 3, 2))
    with pytest.raises(ShapeError, match="channels"):
        Signs(2)(torch.zeros(1, 3, 2))


def test_the_mean_code_of_a_sure_prediction_is_the_code():
    quantizer = FiniteScalar((3, 2))
    probs = torch.eye(6)[None, None]

    assert torch.allclose(quantizer.expected(probs), quantizer.lookup(torch.arange(6)[None]))
