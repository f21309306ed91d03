from __future__ import annotations

import math

import numpy as np
import pytest

from fourm_lite.errors import ShapeError
from fourm_lite.metrics import generation as g


def maps(*rows):
    return np.array(rows)


def test_mean_iou_counts_classes_that_occur_and_sums_over_photos():
    right = maps([[0, 0], [1, 1]], [[0, 0], [0, 0]])
    found = maps([[0, 0], [1, 0]], [[0, 0], [0, 2]])

    value = g.mean_iou(found, right, 3).value

    assert value == pytest.approx((5 / 7 + 1 / 2) / 2)


def test_edges_within_the_tolerance_are_hit_and_those_beyond_are_not():
    right = np.zeros((1, 9, 9), bool)
    right[0, 4] = True

    values = [g.edge_f1(np.roll(right, by, axis=1), right).value for by in (0, 2, 3)]

    assert values == [1.0, 1.0, 0.0]


def test_drawing_everything_costs_precision():
    right = np.zeros((1, 20, 20), bool)
    right[0, 10] = True

    value = g.edge_f1(np.ones_like(right), right).value

    assert value == pytest.approx(2 * 0.25 / 1.25)


def test_palettes_do_not_depend_on_order_and_an_empty_one_is_far():
    palette = [(0, 0, 0), (255, 0, 0)]

    assert g.palette_distances([palette], [palette[::-1]]).value == 0.0
    assert g.palette_distances([[(0, 0, 10)]], [[(0, 0, 0)]]).value == 10.0
    assert g.palette_distances([[]], [palette]).value == pytest.approx(255 * math.sqrt(3))


def test_words_count_as_often_as_a_caption_says_them():
    references = [["a dog runs", "a dog and a man"]]

    assert g.word_accuracy(["A dog runs."], references).value == 1.0
    assert g.word_accuracy(["dog dog dog"], references).value == pytest.approx(1 / 3)
    assert g.word_accuracy(["dog"], references).value == pytest.approx(math.exp(-2))
    assert g.word_accuracy([""], references).value == 0.0


def test_cider_prefers_the_photos_own_caption_to_what_all_photos_say():
    references = [["a dog runs on grass"], ["a man climbs a rock"], ["a girl eats ice cream"]]
    cider = g.Cider.of(references)

    own = cider([r[0] for r in references], references).parts[:, 0]
    common = cider(["a", "a", "a"], references).value

    assert own == pytest.approx([10.0] * 3)
    assert common == 0.0  # every photo says it, so it tells nothing


def test_a_constant_vector_hits_nothing():
    gallery = np.eye(20)

    assert g.hits_at(gallery, gallery, 1).value == 1.0
    assert g.hits_at(np.zeros((20, 20)), gallery, 10).value == 0.0


def test_psnr_of_one_level_and_cosine_about_a_mean():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 1, np.uint8)
    right = np.array([[2.0, 1.0], [0.0, 1.0]])

    assert g.psnr(grey, black).value == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert g.centred_cosines(right, right, np.array([1.0, 1.0])).value == pytest.approx(1.0)
    assert g.centred_cosines(right[::-1], right, np.ones(2)).value == pytest.approx(-1.0)


def test_an_interval_holds_the_value_and_of_equal_photos_has_no_width():
    rng = np.random.default_rng(0)
    spread = g.Measured(rng.random((50, 1)))

    low, high = spread.interval()

    assert low < spread.value < high
    assert g.Measured(np.full((5, 1), 0.5)).interval() == [0.5, 0.5]


def test_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        g.mean_iou(np.zeros((1, 2, 2)), np.zeros((1, 3, 3)), 2)
