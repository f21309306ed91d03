"""Float16 weights on the CPU: nothing but the weights is rounded, and bad input is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourm_lite.errors import FourMError
from fourm_lite.nn.cpu_linear import HalfLinear, can_half

pytestmark = pytest.mark.skipif(not can_half(), reason="this torch has no fbgemm")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 4, 7, 200])
def test_only_the_weights_are_rounded(rows, bias):
    layer = nn.Linear(96, 130, bias=bias)
    x = torch.randn(2, rows, 96, generator=torch.Generator().manual_seed(0))
    rounded = layer.weight.detach().half().float()

    with torch.inference_mode():
        found = HalfLinear(layer)(x)

    wanted = nn.functional.linear(x, rounded, layer.bias)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_inputs_of_another_precision_come_back_in_it():
    layer, x = nn.Linear(16, 8), torch.randn(3, 16, dtype=torch.bfloat16)

    assert HalfLinear(layer)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [1e5, float("nan"), float("-inf")])
def test_a_weight_beyond_float16_is_an_error(bad):
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[1, 2] = bad

    with pytest.raises(FourMError, match="float16 ends at 65504"):
        HalfLinear(layer)


def test_it_runs_on_the_cpu_alone():
    layer = nn.Linear(4, 4)
    half = HalfLinear(layer)

    with pytest.raises(FourMError, match="on the CPU only"):
        half(torch.zeros(1, 4, device="meta"))
    with pytest.raises(FourMError, match="on the CPU only"):
        HalfLinear(nn.Linear(4, 4, device="meta"))
