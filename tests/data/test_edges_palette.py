"""Canny edges and palettes: what their definitions promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fourm_lite.data.palette import canny, describe, follow, gaussian_blur, palette, sobel
from fourm_lite.errors import ConfigError


def step_edge(height=32, width=40, at=17):
    image = torch.zeros(1, 1, height, width)
    image[..., at:] = 1.0
    return image


def test_a_step_gives_one_thin_line_at_its_place():
    edges = canny(step_edge())[0]

    assert (edges.sum(dim=1) == 1).all()
    assert set(edges.nonzero()[:, 1].tolist()) <= {16, 17}


def test_noise_far_below_the_threshold_gives_no_edge(generator):
    flat = 0.5 + 0.01 * torch.randn(2, 3, 32, 32, generator=generator)

    assert not canny(flat).any()


def test_edges_turn_with_the_picture(generator):
    image = torch.rand(1, 3, 24, 36, generator=generator)

    # Mirrored plateaus may choose the other of two equal pixels, so compare where sizes differ.
    agree = canny(image.flip(-1)).flip(-1) == canny(image)
    turned = canny(image.transpose(-1, -2)).transpose(-1, -2) == canny(image)

    assert agree.float().mean() > 0.99
    assert turned.float().mean() > 0.99


def test_a_lower_low_threshold_only_adds_edges(generator):
    image = torch.rand(1, 3, 32, 32, generator=generator)

    few, many = canny(image, low=0.08, high=0.1), canny(image, low=0.02, high=0.1)

    assert (many | ~few).all()


def test_following_equals_connected_components(generator):
    scipy = pytest.importorskip("scipy.ndimage")
    weak = torch.rand(2, 30, 30, generator=generator) < 0.45
    strong = weak & (torch.rand(2, 30, 30, generator=generator) < 0.02)

    found = follow(strong, weak)

    for b in range(2):
        labels, _ = scipy.label(weak[b].numpy(), structure=np.ones((3, 3)))
        kept = np.isin(labels, np.unique(labels[strong[b].numpy()]))
        assert np.array_equal(found[b].numpy(), kept & weak[b].numpy())


def test_blur_and_derivative_are_scipys(generator):
    scipy = pytest.importorskip("scipy.ndimage")
    gray = torch.rand(1, 20, 26, generator=generator, dtype=torch.float64)

    blurred = gaussian_blur(gray, 1.3)[0].numpy()
    dx, dy = sobel(gray)

    expected = scipy.gaussian_filter(gray[0].numpy(), 1.3, mode="mirror", truncate=6 / 1.3)
    np.testing.assert_allclose(blurred, expected, atol=1e-12)
    inner = np.s_[1:-1, 1:-1]
    for got, axis in ((dx, 1), (dy, 0)):
        want = scipy.sobel(gray[0].numpy(), axis=axis) / 8
        np.testing.assert_allclose(got[0].numpy()[inner], want[inner], atol=1e-12)


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="low <= high"):
        canny(step_edge(), low=0.3, high=0.1)


def test_a_palette_finds_the_colours_most_frequent_first():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, :] = (10, 20, 200)
    image[:, 40:] = (250, 240, 0)
    image[:10, 40:] = (0, 128, 0)

    assert palette(image, 3) == [[10, 20, 200], [250, 240, 0], [0, 128, 0]]


def test_a_palette_of_one_colour_has_one_entry():
    assert palette(np.full((8, 8, 3), 77, dtype=np.uint8), 5) == [[77, 77, 77]]


def test_numbers_of_grey_and_of_pure_colour():
    grey = describe(np.full((4, 6, 3), 128, dtype=np.uint8))
    red = np.zeros((4, 6, 3), dtype=np.uint8)
    red[..., 0] = 255

    assert (grey["original_height"], grey["original_width"]) == (4, 6)
    assert grey["brightness"] == pytest.approx(128)
    assert (grey["contrast"], grey["saturation"], grey["entropy"], grey["colorfulness"]) == (
        pytest.approx(0, abs=1e-9),
    ) * 4
    assert describe(red)["saturation"] == pytest.approx(255)


def test_entropy_of_two_equally_frequent_levels_is_one_bit():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 4:] = 200

    assert describe(image)["entropy"] == pytest.approx(1.0)
