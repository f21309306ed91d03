import numpy as np
import pytest

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.exact import unit_vectors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-3, 1, 100, 1e18, 1e30])
def test_vectors_of_any_length_become_unit_length(rng, scale):
    drawn = rng.standard_normal((5, 64))

    made = unit_vectors((drawn * scale).astype(np.float32), 5, 64)

    expected = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert made.dtype == np.float32


def test_unit_vectors_among_others_keep_their_bits(rng):
    drawn = unit_vectors(rng.standard_normal((6, 64)), None, None)
    mixed = drawn.copy()
    mixed[2] *= 7

    made = unit_vectors(mixed, None, None)

    keep = np.arange(6) != 2
    np.testing.assert_array_equal(made[keep], drawn[keep])
    np.testing.assert_array_equal(unit_vectors(made, None, None), made)


def test_lists_integers_and_halves_are_taken():
    assert unit_vectors([[3, 4]], 1, 2).tolist() == [[np.float32(0.6), np.float32(0.8)]]
    assert unit_vectors(np.eye(2, dtype=np.float16), 2, 2).dtype == np.float32
    assert unit_vectors(np.empty((0, 4)), 0, 4).shape == (0, 4)


def test_what_has_no_direction_is_refused(rng):
    with pytest.raises(ConfigError, match="vector 1 is zero"):
        unit_vectors([[1.0, 0.0], [0.0, 0.0]], None, None)
    with pytest.raises(ConfigError, match="1 of 2 are so"):
        unit_vectors([[1.0, np.nan], [0.0, 1.0]], None, None)
    with pytest.raises(ShapeError, match="numbers"):
        unit_vectors([["a"]], None, None)
