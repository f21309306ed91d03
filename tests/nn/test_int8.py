"""Int8 maps: no sum of products saturates, and each form is near the plain map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourm_lite.errors import FourMError
from fourm_lite.nn.cpu_linear import Int8Linear, RangedInt8Linear, can_int8, unsaturated_scales

pytestmark = pytest.mark.skipif(not can_int8(), reason="no int8 products here")


def layer_of(rows: list[list[float]], bias: bool = True) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_large_neighbours_do_not_saturate(sign):
    layer = layer_of([[sign, sign, 0.1, 0.0] * 16] * 8)
    x = torch.ones(3, 64)

    with torch.no_grad():
        for small in (RangedInt8Linear(layer, 0.0, 1.0), Int8Linear(layer)):
            torch.testing.assert_close(small(x), layer(x), rtol=0.02, atol=0.02)


def test_scales_of_odd_rows_count_a_last_input_by_itself():
    scales = unsaturated_scales(torch.tensor([[1.0, -3.0, 2.0], [1.0, 1.5, 0.5]]))

    torch.testing.assert_close(scales, torch.tensor([3.0, 2.5]) / 127)


@pytest.mark.parametrize("bias", [True, False])
def test_a_range_that_is_known_gives_what_the_plain_map_gives(bias):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias)
    x = torch.rand(2, 5, 64, generator=generator) * 3 - 1
    small = RangedInt8Linear(layer, -1.0, 2.0)

    with torch.no_grad():
        plain, rounded = layer(x), small(x)

    assert float((plain - rounded).norm() / plain.norm()) < 0.02
    assert small(x[:, :0]).shape == (2, 0, 48)


def test_inputs_outside_of_the_range_are_cut_off():
    layer = layer_of([[1.0] * 16] * 8, bias=False)
    small = RangedInt8Linear(layer, 0.0, 1.0)

    with torch.no_grad():
        torch.testing.assert_close(small(torch.full((1, 16), 9.0)), small(torch.ones(1, 16)))


@pytest.mark.parametrize("offset", [0.0, -3.0, 40.0])
def test_all_steps_of_a_token_lie_between_its_smallest_and_largest_input(offset):
    layer = nn.Linear(256, 256)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(256))
    x = torch.stack([torch.arange(256.0), torch.zeros(256), torch.ones(256)]) + offset

    with torch.no_grad():
        torch.testing.assert_close(Int8Linear(layer)(x), layer(x), rtol=1e-5, atol=1e-3)


def test_int8_weights_of_known_ranges_are_not_saved():
    with pytest.raises(FourMError, match="cannot be saved"):
        RangedInt8Linear(nn.Linear(4, 4), -1.0, 1.0).state_dict()
