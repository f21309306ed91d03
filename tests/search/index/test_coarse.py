"""Two passes find what one float32 pass finds, whatever the vectors are like."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.errors import StorageError
from fourm_lite.search.index import coarse as two_passes
from fourm_lite.search.index import reader as reading
from fourm_lite.search.index.coarse import Coarse, candidates, nearest_of
from fourm_lite.search.index.exact import Block, nearest, unit_vectors
from fourm_lite.search.index.index import Index


def spread(rng, n, e):
    return rng.standard_normal((n, e))


def clustered(rng, n, e):
    return rng.standard_normal((7, e))[rng.integers(0, 7, n)] + 0.05 * rng.standard_normal((n, e))


def spiky(rng, n, e):
    vectors = 0.01 * rng.standard_normal((n, e))
    vectors[np.arange(n), rng.integers(0, e, n)] += 1
    return vectors


def repeated(rng, n, e):
    return rng.standard_normal((3, e))[rng.integers(0, 3, n)]


def whole(rng, n, e):
    return rng.integers(-1, 2, (n, e)) + 0.25


KINDS = [spread, clustered, spiky, repeated, whole]


def made(kind, seed, n, e):
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(kind(rng, n, e), None, None)
    queries = unit_vectors(np.concatenate([kind(rng, 3, e), vectors[:2]]), None, None)
    return Block(np.arange(10, 10 + n, dtype=np.uint64), vectors), queries


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), n=st.integers(2, 700),
    e=st.integers(2, 200), k=st.integers(1, 20),
)  # fmt: skip
def test_no_neighbour_is_lost(kind, seed, n, e, k):
    block, queries = made(kind, seed, n, e)

    for query, places in zip(
        queries, candidates(Coarse.of(block.vectors), queries, k), strict=True
    ):
        scores = block.vectors @ query
        best = np.argsort(-scores, kind="stable")[:k]
        assert np.isin(best, places).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("among", [False, True])
def test_ids_and_scores_are_those_of_brute_force(kind, among, monkeypatch):
    monkeypatch.setattr(two_passes, "FEWEST", 0)
    block, queries = made(kind, 1, 3000, 96)
    places = np.arange(0, 3000, 3) if among else None
    rows = block if places is None else Block(block.row_ids[places], block.vectors[places])

    found = nearest_of(block, Coarse.of(block.vectors), queries, 10, places)

    for one, truth in zip(found, nearest([rows], queries, 10), strict=True):
        np.testing.assert_allclose(one.scores, truth.scores, atol=2e-6)
        if kind is spread:
            assert one.row_ids.tolist() == truth.row_ids.tolist()


def test_little_is_left_to_the_second_pass():
    block, queries = made(spread, 2, 20_000, 256)

    (places,) = candidates(Coarse.of(block.vectors), queries[:1], 10)

    assert len(places) < 1000


def test_a_filter_is_exact_and_remembered_until_rows_change(tmp_path, monkeypatch):
    monkeypatch.setattr("fourm_lite.search.index.reader.FEWEST", 1)
    monkeypatch.setattr(two_passes, "FEWEST", 1)
    vectors = np.random.default_rng(0).standard_normal((200, 16))
    index = Index.create(tmp_path / "idx", space="toy")
    index.add(range(200), vectors, n=list(range(200)))

    for _ in range(2):
        for where in ("n % 3 = 0", "n > 500", None):
            hits = index.search(vectors[9], k=5, where=where)
            assert hits.ids == index.search(vectors[9], k=5, where=where, engine="scan").ids
    index.upsert([9], -vectors[9:10], n=[9])

    assert 9 not in index.search(vectors[9], k=5, where="n % 3 = 0").ids


def test_answers_of_many_queries_are_those_of_one_by_one(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((50, 8))
    index = Index.create(tmp_path / "idx", space="toy")
    index.add(range(50), vectors, n=list(range(50)))

    many = index.search_many(vectors[:7], k=4, where="n != 3")

    assert [hits.to_rows() for hits in many] == [
        index.search(v, k=4, where="n != 3").to_rows() for v in vectors[:7]
    ]
    assert index.search_many(np.empty((0, 8), np.float32)) == []


@pytest.fixture
def large(tmp_path, monkeypatch):
    """An index that counts as large: 5,000 rows, of which some are much alike."""
    monkeypatch.setattr(reading, "MAPPED_FROM", 1000)
    rng = np.random.default_rng(1)
    index = Index.create(tmp_path / "idx", space="toy")
    vectors = unit_vectors(clustered(rng, 5000, 24), None, None)
    index.add(range(5000), vectors, n=list(range(5000)))
    return index, vectors


def rounded(index):
    return sorted(p.name for p in (Path(index.path) / "rounded").iterdir())


def brute(vectors, query, k=10):
    return np.argsort(-(vectors @ query), kind="stable")[:k].tolist()


def test_a_large_index_is_searched_from_files_beside_it(large):
    index, vectors = large
    index.prepare_search()

    hits = index.search_many(vectors[[3, 70]], k=10)

    assert [h.ids for h in hits] == [brute(vectors, vectors[i]) for i in (3, 70)]
    held = index._handle.newest()._held
    assert held.vectors is None
    assert len(rounded(index)) == 1
    assert Index.open(index.path).search(vectors[9], k=3).ids == brute(vectors, vectors[9], 3)


def test_rows_that_come_go_or_are_filtered_are_seen(large):
    index, vectors = large
    index.search(vectors[0])
    before = rounded(index)

    index.delete(brute(vectors, vectors[3])[:2])
    index.add([9999], vectors[3:4], n=[0])

    after = index.search(vectors[3], k=12).ids
    kept = [i for i in brute(vectors, vectors[3], 14)[2:] if i < 2500]
    assert after[0] == 9999
    assert after[1:] == brute(vectors, vectors[3], 13)[2:]
    assert index.search(vectors[3], k=len(kept), where="n < 2500 and n > 0").ids == kept
    assert len(rounded(index)) == 1
    assert rounded(index) != before


def test_files_that_are_cut_short_are_made_again(large):
    index, vectors = large
    index.prepare_search()
    folder = Path(index.path) / "rounded" / rounded(index)[0]
    (folder / "codes").write_bytes(b"123")

    assert Index.open(index.path).search(vectors[5], k=3).ids == brute(vectors, vectors[5], 3)
    assert (folder / "codes").stat().st_size == 5000 * 24


def test_where_nothing_can_be_written_vectors_are_held(large, monkeypatch):
    index, vectors = large

    def refuse(path):
        raise StorageError("no room")

    monkeypatch.setattr(reading, "replacing_folder", refuse)

    assert index.search(vectors[5], k=3).ids == brute(vectors, vectors[5], 3)
    assert index._handle.newest()._held.vectors is not None


def test_queries_together_are_those_one_by_one(large):
    index, vectors = large

    together = index.search_many(vectors[:70], k=4)

    assert [h.ids for h in together] == [index.search(v, k=4).ids for v in vectors[:70]]


@pytest.mark.parametrize("bare", [True, False])
def test_either_kernel_multiplies_exactly(bare, monkeypatch):
    monkeypatch.setattr(two_passes, "_adds_in_16_bits", lambda: bare)
    rows = np.random.default_rng(0).integers(-127, 128, (50, 1500), np.int8)
    rows[:2] = [[127], [-127]]  # sums beyond what float32 tells apart

    found = np.asarray(two_passes._kernel(rows[:3])(rows))

    assert np.array_equal(found, rows.astype(np.int64) @ rows[:3].T.astype(np.int64))
