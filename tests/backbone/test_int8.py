"""A ViT with int8 maps: the same function before rounding, and the form that each map takes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from tiny import STYLES, tiny_model
from torch import nn

from fourm_lite.backbone import int8
from fourm_lite.backbone.vit import FMViT
from fourm_lite.nn.cpu_linear import Int8Linear, RangedInt8Linear, can_int8

pytestmark = pytest.mark.skipif(not can_int8(), reason="no int8 products here")


@pytest.fixture(params=STYLES)
def vit(request, tmp_path) -> FMViT:
    torch.manual_seed(0)
    folder = tiny_model(request.param, dim=64, num_heads=4).save(tmp_path / "model")
    return FMViT.from_pretrained(folder, num_classes=3)


@pytest.fixture
def many() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def forms(model: nn.Module) -> Counter[type]:
    kinds = (nn.Linear, Int8Linear, RangedInt8Linear)
    return Counter(type(m) for m in model.encoder.modules() if type(m) in kinds)


@torch.no_grad()
def test_making_channels_alike_changes_no_logit(vit, many):
    smooth = copy.deepcopy(vit)
    ranges = int8._observed(smooth, many)

    for block in smooth.encoder:
        int8._smooth(block, ranges)

    torch.testing.assert_close(smooth(many), vit(many), rtol=1e-4, atol=1e-4)
    again = int8._observed(smooth, many)
    for layer, seen in ranges.items():
        torch.testing.assert_close(again[layer].low, seen.low, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again[layer].high, seen.high, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("given", [True, False])
def test_int8_stays_near_and_leaves_the_model_alone(vit, many, given):
    before = {name: value.clone() for name, value in vit.state_dict().items()}

    small = int8.quantized(vit, many[:4] if given else None)

    got, want = small(many), vit(many)
    assert 0 < float((got - want).norm()) < 0.15 * float(want.norm())
    assert not forms(small)[nn.Linear]
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@torch.no_grad()
def test_a_map_takes_the_fastest_form_that_its_inputs_allow(vit, many):
    strict, loose = int8.quantized(vit, many, limit=0.0), int8.quantized(vit, many, limit=10.0)

    assert set(forms(strict)) == {nn.Linear}
    assert set(forms(loose)) == {RangedInt8Linear}
    torch.testing.assert_close(strict(many), vit(many), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tokens_of_unlike_ranges_get_a_scale_each(many):
    layer = nn.Linear(64, 48)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    x[3] *= 300.0
    ranged = RangedInt8Linear(layer, float(x.min()), float(x.max()))

    errors = [
        ((small(x) - layer(x)).norm(dim=-1) / layer(x).norm(dim=-1)).square().mean().sqrt()
        for small in (ranged, Int8Linear(layer))
    ]

    assert errors[1] < int8.LIMIT < errors[0]
