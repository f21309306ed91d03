"""Time, memory and recall of the index. Run by hand; prints one JSON line a figure:

OMP_NUM_THREADS=1 python -m pytest -m bench -s tests/benchmarks/bench_index.py
OMP_NUM_THREADS=1 nice -n 10 python tests/benchmarks/bench_index.py million FOLDER
"""

import json
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fourm_lite.search.index.ann import Ann
from fourm_lite.search.index.index import Index

ROWS, WIDTH, K = 100_000, 768, 10
CHUNK = 10_000

pytestmark = pytest.mark.bench


def told(name, **figures):
    print(
        json.dumps({"bench": name, "threads": os.environ.get("OMP_NUM_THREADS"), **figures}),
        flush=True,
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count, width, seed, clusters=1000, noise=0.7):
    """Unit vectors around shared centres, in pieces that fit any memory."""
    centres = unit(np.random.default_rng(99).standard_normal((clusters, width), np.float32))
    rng = np.random.default_rng(seed)
    own = rng.integers(0, clusters, count)
    spread = rng.standard_normal((count, width), np.float32) * np.float32(noise / width**0.5)
    return unit(centres[own] + spread)


def filled(path, rows, make, **options):
    index = Index.create(path, space="bench", **options)
    start = time.perf_counter()
    for first in range(0, rows, CHUNK):
        vectors = make(first)
        index.add(np.arange(first, first + len(vectors)), vectors)
    return index, time.perf_counter() - start


def milliseconds(items, *calls):
    """Median milliseconds of each call; the calls take turns, so that a busy machine hits all."""
    spent = [[] for _ in calls]
    for item in items:
        for times, call in zip(spent, calls, strict=True):
            start = time.perf_counter()
            call(item)
            times.append(1000 * (time.perf_counter() - start))
    return [float(np.median(times)) for times in spent]


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((ROWS, WIDTH), np.float32))
    path = tmp_path_factory.mktemp("bench") / "idx"
    index, seconds = filled(path, ROWS, lambda first: vectors[first : first + CHUNK])
    told("add 100,000 x 768", seconds=round(seconds, 2), rows_a_second=round(ROWS / seconds))
    queries = unit(rng.standard_normal((200, WIDTH), np.float32))
    start = time.perf_counter()
    index.search(queries[0])
    told("first search reads the vectors", seconds=round(time.perf_counter() - start, 2))
    return index, vectors, queries


def test_exact_search_equals_brute_force_for_200_queries_in_order(hundred_thousand):
    index, vectors, queries = hundred_thousand

    for query in queries:
        expected = np.argsort(-(vectors @ query), kind="stable")[:K]
        assert index.search(query, k=K).ids == expected.tolist()
    many = index.search_many(queries, k=K)
    scores = queries @ vectors.T
    for one, row in zip(many, scores, strict=True):
        assert one.ids == np.argsort(-row, kind="stable")[:K].tolist()
    told("equal to NumPy brute force, in order", queries=len(queries), equal=True)


def test_one_query_costs_a_matrix_vector_product_and_little_more(hundred_thousand):
    index, vectors, queries = hundred_thousand

    bare, search = milliseconds(queries, lambda q: vectors @ q, lambda q: index.search(q, k=K))
    start = time.perf_counter()
    index.search_many(queries[:64], k=K)
    many = 1000 * (time.perf_counter() - start)

    told(
        "one query, 100,000 x 768",
        bare_ms=round(bare, 2),
        search_ms=round(search, 2),
        allowed_ms=round(1.5 * bare + 5, 2),
        sixty_four_queries_ms=round(many, 1),
    )
    assert search <= 1.5 * bare + 5


def test_a_codes_only_index_is_small_and_streams(tmp_path):
    rng = np.random.default_rng(0)
    book = rng.standard_normal((8192, WIDTH), np.float32)

    def decode(codes):
        return book[codes[:, 0]] + book[codes[:, 1]]

    index = Index.create(
        tmp_path / "c", space="bench", kind="codes", codebook_size=8192, decode=decode
    )
    for first in range(0, ROWS, CHUNK):
        ids = [f"img{i:06d}" for i in range(first, first + CHUNK)]
        index.add(ids, codes=rng.integers(0, 8192, (CHUNK, 16)))
    index.compact(keep=timedelta(0))
    used = sum(f.stat().st_size for f in Path(index.path).rglob("*") if f.is_file()) / ROWS
    query = rng.standard_normal(WIDTH)
    (spent,) = milliseconds(range(5), lambda _: index.search(query))

    told("codes-only, 100,000 x 16 codes", bytes_an_item=round(used, 1), query_ms=round(spent, 1))
    assert used <= 40


def test_a_million_rows_are_built_in_bounded_memory_and_found_again(tmp_path):
    million(tmp_path / "m", int(os.environ.get("FOURM_BENCH_ROWS", "1000000")))


def million(path, rows, kind="ivf_rq"):
    index, seconds = filled(
        path, rows, lambda first: clustered(CHUNK, WIDTH, first), memory_limit=1 << 30
    )
    told(f"add {rows:,} x 768", seconds=round(seconds, 1), peak_gib=peak())
    start = time.perf_counter()
    index.compact(keep=timedelta(0))
    told("compact", seconds=round(time.perf_counter() - start, 1), peak_gib=peak())
    start = time.perf_counter()
    index.build_ann(kind, partitions=max(1, rows // 2000))
    told(f"build {kind}", seconds=round(time.perf_counter() - start, 1), peak_gib=peak())
    best = None
    for spent in (Ann(), Ann(probes=80, refine=100)):
        best = index.check(k=K, queries=100, ann=spent)
        told("ann check", **best.to_dict(), peak_gib=peak())
        if best.recall >= 0.95:
            break
    assert index.info()["engine"] == ("ann" if rows * WIDTH * 4 > 1 << 30 else "memory")
    assert best.recall >= 0.95
    assert peak() < rows * WIDTH * 4 / 2**30 or rows < 500_000


def peak():
    """Largest resident memory of this process so far, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    million(Path(sys.argv[2]), int(os.environ.get("FOURM_BENCH_ROWS", "1000000")))
