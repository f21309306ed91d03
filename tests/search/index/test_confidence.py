import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.calibration.calibrate import learn
from fourm_lite.search.calibration.probability import (
    Calibration,
    auroc,
    calibration_error,
    first_features,
    fit,
    with_confidence,
)
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.index.index import Index


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def answers(rng, count=2000):
    """Features whose true probability is known."""
    score, margin = rng.random(count), rng.random(count)
    p = 1 / (1 + np.exp(-(6 * score + 2 * margin - 4)))
    return {"score": score, "margin": margin}, rng.random(count) < p, p


def test_logistic_equals_scikit_learn_where_the_ridge_is_small(rng):
    features, right, p = answers(rng)

    ours = fit(features, right).p_right(features)

    table = np.column_stack(list(features.values()))
    theirs = LogisticRegression(C=1e6).fit(table, right).predict_proba(table)[:, 1]
    np.testing.assert_allclose(ours, theirs, atol=0.01)
    assert np.abs(ours - p).mean() < 0.03


def test_told_probabilities_match_the_shares_that_are_right(rng):
    features, right, _ = answers(rng)
    fresh, truth, _ = answers(rng)

    p = fit(features, right).p_right(fresh)

    assert calibration_error(p, truth) < 0.06
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("name", ["score", "spread"])
def test_better_evidence_never_lowers_the_probability(rng, name):
    score, right = rng.random(500), None
    right = rng.random(500) < score
    features = {name: score if name == "score" else 1 - score}

    made = fit(features, right)

    p = made.p_right({name: np.linspace(-0.5, 1.5, 50)})
    steps = np.diff(p) if name == "score" else -np.diff(p)
    assert (steps >= 0).all()
    assert abs(p[-1] - p[0]) > 0.5


def test_evidence_that_would_count_the_wrong_way_gets_no_weight(rng):
    score = rng.normal(size=400)
    right = score + rng.normal(size=400) > 0
    against = {"score": score, "margin": -score + rng.normal(0, 2, 400), "spread": score}

    found = fit(against, right)

    assert found.weights[0] > 0
    assert found.weights[1:] == (0.0, 0.0)
    better = {"score": score, "margin": against["margin"] + 1, "spread": score - 1}
    assert np.all(found.p_right(better) >= found.p_right(against))


def test_a_calibration_returns_from_json_as_it_was(rng):
    features, right, _ = answers(rng, 100)
    made = fit({"score": features["score"]}, right, threshold=0.3)

    assert Calibration.of(made.to_dict()) == made


def test_a_curve_that_an_earlier_version_stored_is_read():
    stored = {"method": "isotonic", "names": ["score"], "xs": [0.2, 0.6], "ys": [0.0, 1.0]}

    p = Calibration.of(stored).p_right({"score": [0.1, 0.4, 0.7]})

    assert p == pytest.approx([0.0, 0.5, 1.0])


def test_answers_that_separate_keep_finite_weights():
    made = fit({"score": [0.1, 0.2, 0.8, 0.9]}, [False, False, True, True])

    assert np.isfinite([*made.weights, made.bias]).all()
    assert made.p_right({"score": [0.0, 1.0]}).round().tolist() == [0, 1]


def test_auroc_equals_scikit_learn_with_ties(rng):
    scores = rng.integers(0, 6, 300) / 6
    right = rng.random(300) < scores

    assert auroc(scores, right) == pytest.approx(roc_auc_score(right, scores))
    assert auroc([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5
    assert auroc([3, 2, 1], [1, 1, 0]) == 1
    assert auroc([2, 2, 1], [1, 0, 0]) == 0.75


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ConfigError, match="all 2 are right"):
        fit({"score": [1, 2]}, [True, True])
    with pytest.raises(ShapeError, match="2 answers came with 1"):
        fit({"score": [1, 2]}, [True])
    with pytest.raises(ConfigError, match="not finite"):
        fit({"score": [1, np.nan]}, [True, False])
    with pytest.raises(ConfigError, match="only one kind"):
        auroc([1, 2], [1, 1])


def found(*scores):
    return Hits([str(i) for i in range(len(scores))], np.float32(scores))


def test_evidence_is_the_first_score_and_the_margin():
    assert first_features(found(0.75, 0.5, 0.1)) == {"score": 0.75, "margin": 0.25}
    assert first_features(found()) == {}


def test_confidence_stays_unknown_without_its_evidence_and_no_hits_are_no_match(rng):
    made = fit({"likelihood": [1, 2, 3, 4]}, [0, 0, 1, 1])

    assert with_confidence(found(0.5), None).p_right is None
    assert with_confidence(found(0.5), made).p_right is None
    assert with_confidence(found(0.5), made, likelihood=4.0).good_match is True
    assert with_confidence(found(0.5), made, likelihood=1.0).good_match is False
    assert with_confidence(found(), made).good_match is False


def test_an_index_calibrates_itself_and_remembers_it(tmp_path, rng):
    index = Index.create(tmp_path / "i", space="toy")
    rows = rng.standard_normal((200, 16))
    index.add(np.arange(200), rows)
    owner = rng.integers(0, 200, 300)
    noise = np.linspace(0.1, 4, 300)[:, None]
    queries = rows[owner] + noise * rng.standard_normal((300, 16))

    made, told = learn(index.search_many(queries, 2, columns=[]), [{int(i)} for i in owner])
    index.set_calibration(made)

    assert 0.2 < told.share_right < 0.9
    assert told.auroc > 0.85
    assert told.error < 0.2
    again = Index.open(index.path)
    sure, unsure = again.search(rows[3], k=1), again.search(rng.standard_normal(16), k=1)
    assert len(sure) == 1
    assert sure.p_right > 0.8
    assert sure.good_match is True
    assert unsure.p_right < 0.5
    assert unsure.good_match is False
