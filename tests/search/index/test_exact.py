import numpy as np
import pytest

from fourm_lite.search.index import exact
from fourm_lite.search.index.exact import Block, nearest, top_positions


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("levels", [2, 10, 10**6])
@pytest.mark.parametrize("k", [1, 7, 99, 100, 200])
def test_the_best_positions_are_those_of_a_stable_sort(rng, levels, k):
    scores = (rng.integers(0, levels, 100) / levels).astype(np.float32)

    assert top_positions(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


@pytest.mark.parametrize("cuts", [[], [1], [10, 11, 90], list(range(0, 100, 7))])
@pytest.mark.parametrize("block_scores", [50, 1 << 24])
def test_how_rows_are_cut_into_blocks_changes_nothing(rng, cuts, block_scores, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_SCORES", block_scores)
    vectors = rng.integers(-1, 2, (100, 4)).astype(np.float32)  # many ties
    queries = rng.integers(-1, 2, (5, 4)).astype(np.float32)
    row_ids = np.sort(rng.permutation(1000)[:100]).astype(np.uint64)
    parts = zip(np.split(row_ids, cuts), np.split(vectors, cuts), strict=True)

    found = nearest([Block(i, v) for i, v in parts], queries, 9)

    for query, one in zip(queries, found, strict=True):
        best = np.argsort(-(vectors @ query), kind="stable")[:9]
        assert one.row_ids.tolist() == row_ids[best].tolist()
        assert one.scores.tolist() == (vectors @ query)[best].tolist()
