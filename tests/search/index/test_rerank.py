import numpy as np
import pytest

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.rerank import rerank


@pytest.fixture
def hits():
    columns = {"stars": [1, 5, 3, 3, 9], "likelihood": [-3.0, -2.0, -1.0, -4.0, 0.0]}
    return Hits(list("abcde"), np.float32([0.9, 0.8, 0.7, 0.6, 0.5]), columns)


def by_stars(query, candidates):
    return np.array(candidates.columns["stars"])


def test_the_first_hits_follow_the_reranker_and_the_rest_stay(hits):
    seen = []

    def by_likelihood(query, candidates):
        seen.append((query, candidates.ids))
        return np.array(candidates.columns["likelihood"])

    out = rerank("q", hits, by_likelihood, depth=4)

    assert out.ids == list("cbade")
    assert seen == [("q", list("abcd"))]
    assert out.scores[:4].tolist() == [-1, -2, -3, -4]
    assert np.isnan(out.scores[4])
    assert out.columns["stars"] == [3, 5, 1, 3, 9]
    assert out.columns["cosine"] == pytest.approx([0.7, 0.8, 0.9, 0.6, 0.5])


def test_equal_scores_keep_the_order_of_the_search(hits):
    assert rerank(None, hits, by_stars).ids == list("ebcda")
    assert rerank(None, hits, lambda q, c: np.zeros(5)).ids == list("abcde")


def test_no_hits_stay_no_hits():
    empty = Hits([], np.empty(0, np.float32))

    assert len(rerank(None, empty, lambda q, c: np.zeros(0))) == 0


def test_what_a_reranker_must_not_give_is_refused(hits):
    with pytest.raises(ShapeError, match="5 candidates were scored with shape \\[2\\]"):
        rerank(None, hits, lambda q, c: np.zeros(2))
    with pytest.raises(ConfigError, match="no number to hit 'b'"):
        rerank(None, hits, lambda q, c: np.array([1, np.nan, 1, 1, 1]))
    with pytest.raises(ConfigError, match="depth"):
        rerank(None, hits, by_stars, depth=0)
