"""Exact search of 100,000 x 768 in turn with FAISS flat, usearch and one float32 product.

python tests/benchmarks/peers/exact.py [ROWS]
python tests/benchmarks/peers/exact.py million FOLDER

The second makes an index of 1,000,000 x 768 (3 GB) in FOLDER, opens it in a fresh process, and says
when the first query is answered and how much memory that takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
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


def million(folder: Path, rows: int = 1_000_000) -> None:
    place = folder / "million"
    rng = np.random.default_rng(0)
    if not place.exists():
        index = Index.create(place, space="bench")
        for start in range(0, rows, 50_000):
            part = unit(rng.standard_normal((50_000, WIDTH), np.float32))
            index.add(range(start, start + len(part)), part)
        start_s = time.process_time()
        index.compact()
        print(f"compact and rounded rows: {time.process_time() - start_s:.0f} s of CPU", flush=True)
    for _ in range(3):
        told = subprocess.run(
            [sys.executable, __file__, "first", str(place)], capture_output=True, text=True
        )
        print(told.stdout.strip() or told.stderr, flush=True)


def first(place: str) -> None:
    """A fresh process: opening, the first query, others; how much memory they took."""
    rng = np.random.default_rng(1)
    query = unit(rng.standard_normal((4, WIDTH), np.float32))
    start = time.perf_counter()
    index = Index.open(place)
    found = [index.search(query[0], k=K)]
    spent = [time.perf_counter() - start]
    for one in query[1:]:
        start = time.perf_counter()
        found.append(index.search(one, k=K))
        spent.append(time.perf_counter() - start)
    told = Path("/proc/self/status").read_text()
    memory = {n: int(told.split(f"{n}:")[1].split()[0]) / 1e6 for n in ("VmHWM", "RssAnon")}
    exact = [
        index.search(q, k=K, engine="scan").ids == f.ids for q, f in zip(query, found, strict=True)
    ]
    print(json.dumps({"first_s": round(spent[0], 2), "next_s": round(min(spent[1:]), 3),
                      "peak_GB": round(memory["VmHWM"], 2), "anon_GB": round(memory["RssAnon"], 2),
                      "as_scan": sum(exact)}))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 2:
        million(Path(sys.argv[2])) if sys.argv[1] == "million" else first(sys.argv[2])
        sys.exit()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, threads=1)
