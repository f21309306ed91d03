import numpy as np
import pytest

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.query import compose


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_formula_holds_to_a_millionth(rng):
    x, y = 5 * rng.standard_normal((3, 64)), 0.1 * rng.standard_normal((2, 64))
    w, v = [2.0, 0.5, 1.0], [0.7, 0.1]

    q = compose(x, w, negatives=y, negative_weights=v)

    expected = 2 * unit(x[0]) + 0.5 * unit(x[1]) + unit(x[2]) - 0.7 * unit(y[0]) - 0.1 * unit(y[1])
    np.testing.assert_allclose(q, unit(expected), atol=1e-6)
    assert q.dtype == np.float32
    assert np.linalg.norm(q) == pytest.approx(1, abs=1e-6)


def test_the_ranking_is_that_of_the_weighted_cosines(rng):
    x, y, rows = (
        rng.standard_normal((2, 32)),
        rng.standard_normal((1, 32)),
        rng.standard_normal((50, 32)),
    )

    scores = unit(rows) @ compose(x, [3, 1], negatives=y)

    sums = unit(rows) @ (3 * unit(x[0]) + unit(x[1]) - unit(y[0]))
    np.testing.assert_allclose(
        scores, sums / np.linalg.norm(3 * unit(x[0]) + unit(x[1]) - unit(y[0])), atol=1e-6
    )
    assert np.argsort(-scores).tolist() == np.argsort(-sums).tolist()


def test_one_vector_gives_itself_and_its_length_does_not_matter(rng):
    x = rng.standard_normal((1, 16))

    np.testing.assert_allclose(compose(x), unit(x)[0], atol=1e-6)
    np.testing.assert_allclose(compose(x[0]), unit(x)[0], atol=1e-6)
    np.testing.assert_allclose(compose(1000 * x, [0.01]), unit(x)[0], atol=1e-6)


def test_order_and_common_scale_of_weights_change_nothing(rng):
    x = rng.standard_normal((4, 16))
    w = np.array([1.0, 2.0, 0.0, 0.5])
    order = rng.permutation(4)

    q = compose(x, w)

    np.testing.assert_allclose(q, compose(x[order], w[order]), atol=1e-6)
    np.testing.assert_allclose(q, compose(x, 10 * w), atol=1e-6)
    np.testing.assert_allclose(q, compose(x[[0, 1, 3]], w[[0, 1, 3]]), atol=1e-6)


def test_a_negative_lowers_what_it_names_and_can_stand_alone(rng):
    x, y = rng.standard_normal((1, 16)), rng.standard_normal((1, 16))

    assert compose(x, negatives=y) @ unit(y)[0] < compose(x) @ unit(y)[0]
    np.testing.assert_allclose(compose([], negatives=y), -unit(y)[0], atol=1e-6)


def test_what_has_no_direction_is_refused(rng):
    x = rng.standard_normal((2, 8))
    with pytest.raises(ConfigError, match="cancel out"):
        compose(x[:1], negatives=3 * x[:1])
    with pytest.raises(ConfigError, match="nothing to compose"):
        compose([])
    with pytest.raises(ConfigError, match="into negatives"):
        compose(x, [1, -1])
    with pytest.raises(ConfigError, match="zero"):
        compose(np.zeros((1, 8)))
    with pytest.raises(ShapeError, match="differ in width"):
        compose(x, negatives=np.ones((1, 9)))
    with pytest.raises(ShapeError, match="2 vectors came with weights"):
        compose(x, [1])
