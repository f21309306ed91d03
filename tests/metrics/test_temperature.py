import numpy as np
import pytest
import torch

from fourm_lite.errors import ShapeError
from fourm_lite.metrics.classification import best_temperature, log_loss


def drawn(rng, temperature, count=4000, classes=5):
    """Logits, and answers that were drawn from softmax(logits / temperature)."""
    logits = rng.normal(0, 2, (count, classes))
    weights = np.exp(logits / temperature)
    sums = (weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1)
    return logits, (rng.uniform(size=(count, 1)) > sums).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_drew_the_answers_is_found_again(temperature):
    logits, truth = drawn(np.random.default_rng(0), temperature)

    assert best_temperature(logits, truth) == pytest.approx(temperature, rel=0.1)


def test_no_other_temperature_has_less_loss():
    logits, truth = drawn(np.random.default_rng(1), 2.0, count=100)

    best = best_temperature(logits, truth)

    least = log_loss(logits / best, truth)
    assert all(least <= log_loss(logits / t, truth) for t in np.geomspace(0.01, 100, 50))
    scaled = best_temperature(10 * logits, truth)
    assert scaled == pytest.approx(10 * best, rel=1e-6)


def test_the_loss_is_torchs_and_a_guess_costs_log_c():
    logits, truth = drawn(np.random.default_rng(2), 1.0, count=50)

    want = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth))
    assert log_loss(logits, truth) == pytest.approx(float(want))
    assert log_loss(np.zeros((3, 7)), [0, 1, 2]) == pytest.approx(np.log(7))


def test_logits_that_mislead_end_at_a_guess_and_other_shapes_are_refused():
    assert best_temperature([[1.0, 0.0]] * 4, [1] * 4) == pytest.approx(1e4, rel=1e-3)
    with pytest.raises(ShapeError, match=r"\[N, C\]"):
        log_loss(np.zeros((3, 2)), [0, 1])
