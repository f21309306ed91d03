"""Vectors of length 1: the one way, whatever precision they come in."""

import numpy as np
import pytest
import torch

from fourm_lite.unit import lengths, unit, unit_doubles


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 48), (3, 2, 5), (9,)])
def test_vectors_have_length_1_along_the_last_axis_and_keep_their_direction(dtype, shape):
    vectors = np.random.default_rng(0).normal(size=shape).astype(dtype)

    made = unit(vectors)

    assert made.dtype == np.float32
    assert made.shape == shape
    np.testing.assert_allclose(lengths(made), 1, atol=1e-6)
    np.testing.assert_allclose(made * lengths(vectors), vectors, atol=1e-3)
    np.testing.assert_array_equal(unit_doubles(vectors).astype(np.float32), made)
    want = torch.nn.functional.normalize(torch.from_numpy(vectors).double(), dim=-1)
    np.testing.assert_allclose(made, want, atol=1e-6)


def test_a_zero_vector_stays_zero():
    assert unit(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]
