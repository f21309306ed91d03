import numpy as np
import pytest
from sklearn import metrics as sk

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics import measures as metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Each line: scores of candidates A B C D, which are right, the rank worked out by hand.
RANKS = [
    ([0.9, 0.5, 0.4, 0.1], [1, 0, 0, 0], 1),  # first place, alone
    ([0.9, 0.5, 0.4, 0.1], [0, 0, 1, 0], 3),  # A and B are before it
    ([0.9, 0.9, 0.4, 0.1], [1, 0, 0, 0], 2),  # ties with the wrong B, which goes first
    ([0.9, 0.9, 0.4, 0.1], [1, 1, 0, 0], 1),  # ties with another right one: nothing lost
    ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], 4),  # says nothing, finds nothing
    ([0.5, 0.5, 0.5, 0.5], [0, 1, 1, 0], 3),  # two wrong ones go first
    ([0.9, 0.7, 0.7, 0.7], [0, 1, 0, 1], 3),  # A above, the wrong C goes first, then a right one
    ([0.1, 0.2, 0.3, -np.inf], [1, 0, 0, 0], 3),  # D is left out
]


@pytest.mark.parametrize(("scores", "right", "rank"), RANKS)
def test_ranks_worked_out_by_hand(scores, right, rank):
    assert metrics.first_ranks([scores], [right]).tolist() == [rank]


def test_summary_of_ranks_worked_out_by_hand():
    told = metrics.summary([1, 1, 2, 6, 50])

    assert told == pytest.approx(
        {
            "R@1": 2 / 5,
            "R@5": 3 / 5,
            "R@10": 4 / 5,
            "median_rank": 2,
            "MRR": (1 + 1 + 1 / 2 + 1 / 6 + 1 / 50) / 5,
        }
    )
    assert metrics.summary([1, 4])["median_rank"] == 2.5


# right answers at the first and third place: (1/1 + 2/3) / 2
# with the first two tied: one right of two at that score, then 2/3: (1/2 + 2/3) / 2
# all tied: 2 of 3 for both
PRECISIONS = [
    ([3, 2, 1], [1, 0, 1], (1 / 1 + 2 / 3) / 2),
    ([3, 3, 1], [1, 0, 1], (1 / 2 + 2 / 3) / 2),
    ([1, 1, 1], [1, 0, 1], 2 / 3),
    ([1, 2, 3], [1, 0, 0], 1 / 3),
    ([1, 3, 3], [1, 0, 0], 1 / 3),
    ([2, 2, 2], [1, 1, 1], 1.0),
]


@pytest.mark.parametrize(("scores", "right", "expected"), PRECISIONS)
def test_average_precision_worked_out_by_hand(scores, right, expected):
    assert metrics.average_precisions([scores], [right])[0] == pytest.approx(expected)
    assert sk.average_precision_score(right, scores) == pytest.approx(expected)


# right at place 2 of 3: 1/log2(3); tied for places 1 and 2: the mean of both discounts
GAINS = [
    ([3, 2, 1], [0, 1, 0], None, 1 / np.log2(3)),
    ([3, 3, 1], [0, 1, 0], None, (1 + 1 / np.log2(3)) / 2),
    ([3, 2, 1], [0, 0, 1], 2, 0.0),
    ([3, 2, 2], [0, 0, 1], 2, 1 / np.log2(3) / 2),
    ([3, 2, 1], [1, 0, 1], None, (1 + 1 / 2) / (1 + 1 / np.log2(3))),
]


@pytest.mark.parametrize(("scores", "right", "k", "expected"), GAINS)
def test_ndcg_worked_out_by_hand(scores, right, k, expected):
    assert metrics.ndcg([scores], [right], k)[0] == pytest.approx(expected)
    assert sk.ndcg_score([right], [scores], k=k) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [3, 1000])
def test_scikit_learn_agrees_with_and_without_ties(rng, levels):
    scores = rng.integers(0, levels, (30, 40)) / levels
    right = rng.random((30, 40)) < 0.15
    right[:, 0] = True
    gains = right * rng.integers(1, 4, right.shape)

    expected = [sk.average_precision_score(r, s) for r, s in zip(right, scores, strict=True)]
    np.testing.assert_allclose(metrics.average_precisions(scores, right), expected)
    for k in (None, 5, 10):
        each = [sk.ndcg_score([g], [s], k=k) for g, s in zip(gains, scores, strict=True)]
        np.testing.assert_allclose(metrics.ndcg(scores, gains, k), each)


def test_a_constant_score_finds_nothing(rng):
    ranks = metrics.first_ranks(np.zeros((20, 30)), np.eye(20, 30, dtype=bool))

    assert metrics.summary(ranks)["R@10"] == 0


def test_the_order_of_candidates_changes_nothing(rng):
    scores = rng.integers(0, 5, (10, 25)).astype(float)
    right = rng.random((10, 25)) < 0.2
    right[:, 3] = True
    order = rng.permutation(25)

    for measure in (metrics.first_ranks, metrics.average_precisions, metrics.ndcg):
        np.testing.assert_allclose(
            measure(scores, right), measure(scores[:, order], right[:, order])
        )


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="1 queries have no right answer, such as query 1"):
        metrics.first_ranks(np.ones((2, 3)), [[1, 0, 0], [0, 0, 0]])
    with pytest.raises(ConfigError, match="not a number"):
        metrics.first_ranks([[np.nan, 1]], [[1, 0]])
    with pytest.raises(ShapeError, match=r"\[2, 3\] and \[2, 2\]"):
        metrics.ndcg(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(ConfigError, match="at least 0"):
        metrics.ndcg([[1, 2]], [[1, -1]])
