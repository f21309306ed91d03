"""Exact search of 100,000 x 768 in turn with FAISS flat, usearch and one float32 product.

python tests/benchmarks/peers/exact.py [ROWS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from turns import take_turns, tell
from usearch.index import search as scan

from fourm_lite.search.index.index import Index

WIDTH, K, ROUNDS = 768, 10, 15


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main(rows: int, threads: int) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((rows, WIDTH), np.float32))
    queries = unit(rng.standard_normal((64, WIDTH), np.float32))
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "idx", space="bench")
        for start in range(0, rows, 20_000):
            part = vectors[start : start + 20_000]
            index.add(range(start, start + len(part)), part, n=list(range(len(part))))
        agreement(index, vectors, queries)
        one = queries[:1]
        tell("one query, CPU ms", turns({
            "FAISS flat": lambda: flat.search(one, K),
            "float32 product": lambda: vectors @ one[0],
            "ours": lambda: index.search(one[0], k=K),
        }))  # fmt: skip
        rounded = np.rint(127 * vectors / np.abs(vectors).max()).astype(np.int8)
        query = np.rint(127 * one[0] / np.abs(one[0]).max()).astype(np.int8)
        tell("one query, CPU ms", turns({
            "usearch int8 scan (not exact)": lambda: scan(rounded, query, K, exact=True),
            "ours": lambda: index.search(one[0], k=K),
        }))  # fmt: skip
        tell("64 queries, CPU ms", turns({
            "FAISS flat": lambda: flat.search(queries, K),
            "ours, one by one": lambda: [index.search(q, k=K) for q in queries],
            "ours": lambda: index.search_many(queries, k=K),
        }, rounds=5))  # fmt: skip
        allowed = np.flatnonzero(np.arange(rows) % 20_000 < 10_000)
        selector = faiss.SearchParameters(sel=faiss.IDSelectorBatch(allowed))
        tell("one query, half of the rows by a filter, CPU ms", turns({
            "FAISS flat, id selector": lambda: flat.search(one, K, params=selector),
            "ours": lambda: index.search(one[0], k=K, where="n < 10000"),
        }))  # fmt: skip


def turns(cases: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    return take_turns(cases, rounds=rounds, cpu=True)


def agreement(index: Index, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Says how many queries get the ids of float32 brute force, in order."""
    truth = [np.argsort(-(vectors @ q), kind="stable")[:K].tolist() for q in queries]
    equal = [h.ids == t for h, t in zip(index.search_many(queries, k=K), truth, strict=True)]
    print(f"ids of brute force, in order: {sum(equal)} of {len(queries)} queries", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, threads=1)
