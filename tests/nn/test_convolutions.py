"""The convolutions are MobileNetV2's: sizes, padding, residuals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fourm_lite.nn.convolutions import WIDTH, Conv, Convolutions, InvertedResidual


@pytest.mark.parametrize("size", [(224, 224), (32, 80), (16, 16)])
def test_one_vector_for_sixteen_pixels(size):
    net = Convolutions(3)

    out = net(torch.zeros(1, 3, *size))

    assert out.shape == (1, size[0] // 16 * size[1] // 16, WIDTH)


def test_the_layers_are_those_of_the_papers_table():
    net = Convolutions(3)

    assert len(net.layers()) == 1 + 2 + 3 * 16
    # The table's rows to the one of 320 channels, with biases for folded norms
    assert sum(p.numel() for p in net.parameters()) == 1_795_936


def test_a_stride_pads_behind_as_tensorflow_does(generator):
    conv = Conv(2, 4, 3, stride=2)
    x = torch.randn(1, 2, 6, 8, generator=generator)

    corner = (x[:, :, -2:, -2:].flatten(1) * conv.weight[:, :, :2, :2].flatten(1)).sum(1)

    torch.testing.assert_close(conv(x)[0, :, -1, -1], corner + conv.bias)
    assert conv(x).shape == (1, 4, 3, 4)
    assert conv(x[:, :, :5]).shape == (1, 4, 3, 4)


def test_a_block_adds_its_input_only_where_shapes_agree(generator):
    x = torch.randn(2, 8, 4, 4, generator=generator)
    same = InvertedResidual(8, 8, expansion=2, stride=1)
    wider = InvertedResidual(8, 12, expansion=1, stride=2)
    for block in (same, wider):
        torch.nn.init.zeros_(block.narrow.weight)

    torch.testing.assert_close(same(x), x + same.narrow.bias.view(1, -1, 1, 1))
    assert wider.expand is None
    torch.testing.assert_close(wider(x), wider.narrow.bias.view(1, -1, 1, 1).expand(2, 12, 2, 2))


def test_drawn_weights_neither_fade_nor_explode(generator):
    net = Convolutions(3)
    torch.manual_seed(0)
    net.init_weights()

    out = net(F.interpolate(torch.randn(4, 3, 16, 16, generator=generator), 64))

    # Normed at each scale; without weights of a fitting size the rows of all patches are alike
    assert 0.9 < float(out.detach().std()) < 1.1
    assert float(out.detach().std(dim=1).mean()) > 0.1
