import numpy as np
import pytest
from scipy import stats

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics.measures import interval


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_interval_of_a_mean_is_near_the_normal_one(rng):
    values = rng.random(400)

    found = interval(values, draws=4000)

    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.004)
    assert found.high == pytest.approx(values.mean() + half, abs=0.004)


def test_scipy_agrees(rng):
    values = rng.random(100) < 0.3

    ours = interval(values, draws=4000)

    theirs = stats.bootstrap(
        (values.astype(float),), np.mean, method="percentile", n_resamples=4000, rng=rng
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_queries_drawn_together_give_a_wider_interval(rng):
    each = rng.random(60)
    values, groups = np.repeat(each, 5), np.repeat(np.arange(60), 5)

    alone, together = interval(values), interval(values, groups=groups)
    single = interval(each)

    assert together.high - together.low > 1.8 * (alone.high - alone.low)
    assert (together.low, together.high) == pytest.approx((single.low, single.high), abs=0.01)


def test_another_statistic_can_be_drawn_and_a_seed_repeats_it(rng):
    ranks = rng.integers(1, 50, 101)

    found = interval(ranks, statistic=lambda v: float(np.median(v)), draws=200)

    assert found.low <= np.median(ranks) <= found.high
    assert found == interval(ranks, statistic=lambda v: float(np.median(v)), draws=200)


def test_constant_values_leave_no_doubt():
    found = interval(np.ones(10))

    assert (found.low, found.value, found.high) == (1, 1, 1)


def test_bad_arguments_are_refused():
    with pytest.raises(ShapeError):
        interval([])
    with pytest.raises(ShapeError):
        interval([1.0, 2.0], groups=[1])
    with pytest.raises(ConfigError):
        interval([1.0], level=1.5)
