import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics.classification import knn_predict, knn_votes


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clusters(rng, count, classes=6, width=12):
    centres = np.random.default_rng(7).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    return centres[labels] + 0.8 * rng.standard_normal((count, width)), labels


def test_votes_worked_out_by_hand():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    votes = knn_votes(train, [0, 1, 1], [[1.0, 0.0]], k=3, temperature=0.5)

    weight = np.exp(np.array([1.0, 0.0, -1.0]) / 0.5)
    np.testing.assert_allclose(votes[0], [weight[0], weight[1] + weight[2]] / weight.sum())


def test_many_far_neighbours_can_outvote_a_near_one():
    train = np.array([[1.0, 0.1], *[[1.0, 0.4]] * 5])
    labels = [0, 1, 1, 1, 1, 1]

    assert knn_predict(train, labels, [[1.0, 0.0]], k=6, temperature=1.0).tolist() == [1]
    assert knn_predict(train, labels, [[1.0, 0.0]], k=6, temperature=0.01).tolist() == [0]
    assert knn_predict(train, labels, [[1.0, 0.0]], k=1, temperature=1.0).tolist() == [0]


def test_scikit_learn_agrees_with_the_same_weights(rng):
    train, labels = clusters(rng, 300)
    queries, _ = clusters(rng, 80)
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)

    theirs = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(unit, labels)

    np.testing.assert_array_equal(knn_predict(train, labels, queries), theirs.predict(queries))


def test_equal_votes_go_to_the_smaller_label():
    train = np.array([[1.0, 0.0], [1.0, 0.0]])

    assert knn_predict(train, [2, 1], [[1.0, 0.0]], k=2).tolist() == [1]


def test_a_query_left_out_cannot_vote_for_itself(rng):
    train, labels = clusters(rng, 400)
    noise = rng.permutation(labels)

    assert (knn_predict(train, noise, train, k=1) == noise).all()
    alone = knn_predict(train, noise, train, k=1, leave_self_out=True)
    assert (alone == noise).mean() < 0.4


def test_what_does_not_fit_is_refused(rng):
    with pytest.raises(ShapeError):
        knn_predict(np.eye(3), [0, 1], np.eye(3))
    with pytest.raises(ConfigError):
        knn_predict(np.eye(3), [0, 1, 2], np.zeros((1, 3)))
    with pytest.raises(ConfigError):
        knn_predict(np.eye(3), [0, 1, 2], np.eye(3), temperature=0)
