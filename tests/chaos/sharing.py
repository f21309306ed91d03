"""One index, several processes that write, compact and calibrate, threads that read: no wrong row.

Row `a<i>` always has the vector i of a fixed table and the number i; writers replace rows by
themselves, add and delete others, and drop old versions. So whatever version a search sees, the
nearest row of vector i is `a<i>` and its number is i.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

ROWS, WIDTH = 300, 32


def table() -> Any:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


def write(path: str, seconds: float, name: str) -> Counter[str]:
    """One writer: the same rows again, rows of its own, old versions away."""
    from fourm_lite.search.index.index import Index

    v, done, end, k = table(), Counter[str](), time.monotonic() + seconds, 0
    index = Index.open(path)
    while time.monotonic() < end:
        ids = [k % ROWS, (k + 7) % ROWS]
        index.upsert([f"a{i}" for i in ids], v[ids], n=ids)
        index.add([f"{name}{k}"], -v[:1], n=[-1])
        index.delete([f"{name}{k}"])
        if k % 25 == 24:
            index.compact(keep=timedelta(0))
        if k % 40 == 39:
            index.set_calibration(None)
        done["writes"] += 3
        k += 1
    return done


def read(path: str, seconds: float, threads: int = 4) -> Counter[str]:
    """One process whose threads share a handle: searches, gets, filters and scans."""
    from fourm_lite.search.index.index import Index

    v, index, done = table(), Index.open(path), Counter[str]()
    end, lock = time.monotonic() + seconds, threading.Lock()

    def reader(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < end:
            i = int(rng.integers(ROWS))
            try:
                told = _asked(index, v, i, int(rng.integers(5)))
            except Exception as error:
                told = f"error: {type(error).__name__}: {str(error)[:120]}"
            with lock:
                done[told] += 1

    sys.setswitchinterval(1e-5)
    pool = [threading.Thread(target=reader, args=(seed,)) for seed in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return done


def _asked(index: Any, v: Any, i: int, way: int) -> str:
    """One question of a way, and whether it was answered right."""
    if way == 0:
        hits = index.search(v[i], k=2)
        right = (hits.ids[0], hits.columns["n"][0]) == (f"a{i}", i)
    elif way == 1:
        right = index.search(v[i], k=1, columns=[]).ids == [f"a{i}"]
    elif way == 2:
        right = index.search(v[i], k=1, where=f"n = {i}", engine="scan").ids == [f"a{i}"]
    elif way == 3:
        found = index.vectors([f"a{i}"])[0]
        right = bool(np.allclose(found, v[i] / np.linalg.norm(v[i]), atol=1e-6))
    else:
        seen = [n for batch in index.scan(["n"]) for n in batch.column(0).to_pylist() if n >= 0]
        right = sorted(seen) == list(range(ROWS))
    return "reads" if right else f"wrong: way {way} of row {i}"


def share(folder: Path, seconds: float, *, writers: int = 2, readers: int = 2) -> Counter[str]:
    """Writers and readers at once; what all of them did."""
    from fourm_lite.search.index.index import Index

    path = folder / "shared"
    index = Index.create(path, space="toy")
    index.add([f"a{i}" for i in range(ROWS)], table(), n=list(range(ROWS)))
    command = [sys.executable, "-m", "chaos.sharing"]
    roles = [("write", f"w{n}-") for n in range(writers)] + [("read", "")] * readers
    children = [
        subprocess.Popen([*command, role, str(path), str(seconds), name], stdout=subprocess.PIPE)
        for role, name in roles
    ]
    total = Counter[str]()
    for (role, _), child in zip(roles, children, strict=True):
        out, _ = child.communicate()
        total += Counter(json.loads(out)) if child.returncode == 0 else {f"error: {role} died": 1}
    return total


if __name__ == "__main__":
    role, path, seconds, name = sys.argv[1:]
    done = write(path, float(seconds), name) if role == "write" else read(path, float(seconds))
    print(json.dumps(done))
