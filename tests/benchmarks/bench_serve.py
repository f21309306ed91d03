"""The service under load: 1, 8 and 32 clients at once against 10,000 rows, on this machine.

    python tests/benchmarks/bench_serve.py [--seconds 10]

Told are queries a second, the 95th percentile of the time of an answer, and what a query takes of
the server's processor, which other work on the machine does not change; whether answers equal
those of `Search` in process; what the same batches cost in process, without HTTP, which bounds the
rest; 1,000 malformed bodies with the memory before and after; and how long a server that was
killed (SIGKILL) takes from its start to its first answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourm_lite.client import SearchClient
from fourm_lite.demo.examples import example_model
from fourm_lite.search.engine import Ask, Search
from fourm_lite.search.gallery import open_index
from fourm_lite.search.query import Query
from fourm_lite.search.spaces import open_space

ROWS, K = 10_000, 10
THINGS = ("a dog", "two people", "a red flower", "a train", "a boat", "an old house", "a child")
PLACES = ("on a beach", "in the snow", "by the water", "at night", "in a city", "on the grass")
WORDS = [f"{thing} {place}" for thing in THINGS for place in PLACES]


def make_index(folder: Path, model: Path) -> Path:
    """Rows whose vectors are drawn around those of the words, so that answers differ."""
    space = open_space(model)
    rng = np.random.default_rng(0)
    centres = space.encode_query([{"caption": w} for w in WORDS])
    vectors = centres[rng.integers(0, len(WORDS), ROWS)]
    vectors = vectors + rng.normal(0, 0.05, vectors.shape).astype(np.float32)
    index = open_index(folder / "rows.idx", space)
    codes = rng.integers(0, space.codebook_size, (ROWS, space.target.max_tokens))
    index.add(
        [f"row{i:05d}" for i in range(ROWS)], vectors, codes=codes,
        uri=[f"/photos/{i:05d}.jpg" for i in range(ROWS)],
        year=[2000 + i % 25 for i in range(ROWS)],
    )  # fmt: skip
    return folder / "rows.idx"


def start(index: Path, model: Path) -> tuple[subprocess.Popen[str], str, float]:
    """A server, its address, and the seconds until it answered a query."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fourm_lite", "serve", str(index), "--port", "0"]
    process = subprocess.Popen([*command, "--model", str(model)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(line.strip() for line in process.stderr if line.startswith("http://"))
    SearchClient(url).search(WORDS[0], k=K)
    return process, url, time.perf_counter() - began


def load(url: str, clients: int, seconds: float) -> tuple[float, float, float, int]:
    """Queries a second, the median and 95th percentile of milliseconds, and how many were asked."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    def ask(number: int) -> None:
        client = SearchClient(url)
        at = number * 5
        while time.perf_counter() < until:
            began = time.perf_counter()
            client.search(WORDS[at % len(WORDS)], k=K)
            took.append(time.perf_counter() - began)
            at += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(took) / (time.perf_counter() - began)
    middle, late = np.percentile(np.array(took) * 1000, [50, 95])
    return rate, float(middle), float(late), len(took)


def in_process(search: Search, sizes: Sequence[int]) -> dict[int, float]:
    """Queries a second of `Search.many`, by how many are asked at once."""
    found = {}
    for size in sizes:
        asks = [Ask(Query.of(caption=WORDS[i % len(WORDS)]), K) for i in range(size)]
        search.many(asks)
        times = []
        for _ in range(max(3, 60 // size)):
            began = time.perf_counter()
            search.many(asks)
            times.append(time.perf_counter() - began)
        found[size] = size / float(np.median(times))
    return found


def malformed(url: str, process: subprocess.Popen[str], count: int) -> tuple[dict[int, int], float]:
    """Statuses of broken bodies, and by how many MiB the server's memory grew."""
    rng = np.random.default_rng(1)
    whole = json.dumps({"text": "a dog", "k": 5, "weights": {"text": 2}, "where": "year > 3"})
    statuses: dict[int, int] = {}
    before = number = 0
    while sum(statuses.values()) < count:
        number += 1
        if number == 100:  # what is made once is there by now
            before = resident(process.pid)
        data = bytearray(whole.encode())
        for _ in range(rng.integers(1, 4)):
            data[int(rng.integers(0, len(data)))] = int(rng.choice(list(b'{}[]":,\x00\xff\\')))
        data = data[: int(rng.integers(1, len(data)))] if number % 2 else data
        if is_whole(bytes(data)):
            continue
        status = post(url, bytes(data))
        if number >= 100:
            statuses[status] = statuses.get(status, 0) + 1
    return statuses, (resident(process.pid) - before) / 2**20


def is_whole(data: bytes) -> bool:
    """Whether damage left a body that may be answered."""
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def post(url: str, data: bytes) -> int:
    """The status of an answer; 0 for a refusal without a sentence."""
    request = urllib.request.Request(url + "/search", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        told = json.loads(error.read())["error"]
        return error.code if len(told.split()) > 3 else 0


def busy(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    seconds = parser.parse_args().seconds
    model = example_model("random_model")
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), model)
        search = Search.open(index, model)
        for size, rate in in_process(search, (1, 8, 16, 32)).items():
            print(f"in process, {size:2d} at once: {rate:6.1f} queries/s", flush=True)
        process, url, took = start(index, model)
        print(f"first start to first answer: {took:.1f} s", flush=True)
        client = SearchClient(url)
        equal = 0
        for words in WORDS:
            told, wanted = client.search(words, k=K), search(caption=words, k=K)
            equal += told.ids == wanted.ids and np.allclose(told.scores, wanted.scores, atol=1e-5)
        print(f"answers equal to Search in process: {equal} of {len(WORDS)}", flush=True)
        rates, costs = {}, {}
        for clients in (1, 8, 32):
            load(url, clients, 1)
            before = busy(process.pid)
            rates[clients], middle, late, asked = load(url, clients, seconds)
            costs[clients] = 1000 * (busy(process.pid) - before) / asked
            print(
                f"{clients:2d} clients: {rates[clients]:6.1f} queries/s, median {middle:.0f} ms, "
                f"p95 {late:.0f} ms, {rates[clients] / rates[1]:.1f} x one client; "
                f"{costs[clients]:.1f} ms of a processor a query, one client takes "
                f"{costs[1] / costs[clients]:.1f} x", flush=True,
            )  # fmt: skip
        statuses, grown = malformed(url, process, 1000)
        print(f"malformed bodies: {statuses}, memory grew by {grown:.1f} MiB", flush=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process, url, took = start(index, model)
        print(f"after kill -9: first answer {took:.1f} s after the start", flush=True)
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
