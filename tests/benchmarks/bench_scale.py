"""Two workers of Ray against the local engine over one folder of photos, and what kills leave.

    python tests/benchmarks/bench_scale.py ../shared/data/captions/images [--count 500]
    python tests/benchmarks/bench_scale.py ../shared/data/captions/images --count 60 --kills 10

The photos go into tars in a bucket of a server on this machine that speaks S3's protocol, and both
engines read and write there. Told are the wall times of `fourm-lite index`, and the same without
what it takes before the first photo: a run over one photo a worker is subtracted. With --kills a
worker, and then the command, is killed (SIGKILL) so many times at random moments, each in an index
of its own, and the same command is run again: the rows are compared with those of the local engine,
the files with those that a version names, and what the command started should have ended with it.
With --cluster all commands share one Ray that was started before them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_shards import orphans, workers_of

INDEX = [sys.executable, "-m", "fourm_lite", "-q", "index"]
ENGINES = {"local": [], "ray": ["--engine", "ray"]}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
GONE = 180.0
"""Seconds within which what a killed command started has ended."""


def start_store() -> subprocess.Popen[bytes]:
    """The server, in a process of its own; the environment names it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, **QUIET)
    address = f"http://127.0.0.1:{port}"
    named = {"AWS_ENDPOINT_URL": address, "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true"}
    named |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    os.environ.update(named, AWS_DEFAULT_REGION="us-east-1")
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    return server


def start_cluster() -> subprocess.Popen[bytes]:
    """A Ray of two CPUs for all commands; the environment names it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    words += ["--port", str(port), "--num-cpus", "2", "--include-dashboard", "false"]
    os.environ["RAY_AUTH_MODE"] = "disabled"
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen([*words, "--disable-usage-stats"], env=environment, **QUIET)
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    return head


def put_shards(photos: list[Path], name: str, each: int) -> str:
    """Puts tars of photos into a bucket; gives the pattern that names them."""
    import s3fs

    files = s3fs.S3FileSystem()
    files.mkdir(name)
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(photos), each):
            path = Path(folder) / f"s-{start // each:03d}.tar"
            with tarfile.open(path, "w") as tar:
                for photo in photos[start : start + each]:
                    tar.add(photo, photo.name)
            files.put(str(path), f"{name}/{path.name}")
    return f"s3://{name}/s-{{000..{(len(photos) - 1) // each:03d}}}.tar"


def command(source: str, out: str, engine: str, model: str) -> list[str]:
    return [*INDEX, source, "-o", out, "-m", model, "--workers", "2", *ENGINES[engine]]


def timed(source: str, out: str, engine: str, model: str) -> float:
    start = time.perf_counter()
    subprocess.run(command(source, out, engine, model), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def rows_of(out: str):
    from fourm_lite.search.index.index import Index

    index = Index.open(out)
    table = index.rows.newest().handle.to_table()
    return index, table, np.stack(table["vector"].to_pylist())


def compare(one: str, other: str) -> dict[str, object]:
    (_, first, vectors), (_, second, others) = rows_of(one), rows_of(other)
    names = [n for n in first.column_names if n != "vector"]
    equal = {n: first[n].to_pylist() == second[n].to_pylist() for n in names}
    return {
        "rows": len(second),
        "columns that differ": [n for n, is_equal in equal.items() if not is_equal],
        "codes compared": "codes" in names,
        "largest difference of vectors": float(np.abs(vectors - others).max()),
    }


def measure(source: str, start: str, model: str, repeats: int) -> None:
    walls: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for turn in range(repeats):
        for engine, told in walls.items():
            begin = timed(start, f"s3://photos/{engine}-{turn}-start", engine, model)
            told.append((timed(source, f"s3://photos/{engine}-{turn}", engine, model), begin))
            print(
                f"{engine}: {told[-1][0]:.1f} s, of them before the first photos {begin:.1f} s",
                flush=True,
            )
    whole, rest = (
        {engine: float(np.median([pick(t) for t in told])) for engine, told in walls.items()}
        for pick in (lambda t: t[0], lambda t: t[0] - t[1])
    )
    facts = compare("s3://photos/local-0", "s3://photos/ray-0")
    facts |= {"ratio of the commands": round(whole["ray"] / whole["local"], 3)}
    facts |= {"ratio without starts": round(rest["ray"] / rest["local"], 3)}
    print(json.dumps(facts, indent=1), flush=True)


def chaos(source: str, given: argparse.Namespace, head: int | None) -> None:
    rng = random.Random(given.seed)
    local = timed(source, "s3://photos/here", "local", given.model)
    took = timed(source, "s3://photos/whole", "ray", given.model)
    print(f"not killed: local engine {local:.1f} s, ray {took:.1f} s", flush=True)
    begun = time.monotonic()
    for who in given.who:
        for number in range(given.kills):
            if time.monotonic() - begun > given.seconds:
                return
            out = f"s3://photos/{who}-{number}"
            driver = subprocess.Popen(command(source, out, "ray", given.model), **QUIET)
            after = rng.uniform(0, took)
            ended = kill(driver, who, after, rng, head)
            timed(source, out, "ray", given.model)
            told = compare("s3://photos/here", out)
            lost = orphans(rows_of(out)[0])
            print(
                f"{who} killed after {after:.1f} s ({ended}): {told}, orphans {len(lost)}",
                flush=True,
            )
            assert not lost
            assert not told["columns that differ"]
            assert told["largest difference of vectors"] < 1e-6


def kill(
    driver: subprocess.Popen[bytes], who: str, after: float, rng: random.Random, head: int | None
) -> str:
    """Kills one process after a while; a worker as soon as there is one. Tells how it ended."""
    end = time.monotonic() + after
    while driver.poll() is None:
        found = [driver.pid] if who == "driver" else workers_of(head or driver.pid)
        if found and time.monotonic() > end:
            below = psutil.Process(driver.pid).children(recursive=True)
            os.kill(rng.choice(found), signal.SIGKILL)
            ended, killed = driver.wait(), time.monotonic()
            left = psutil.wait_procs(below, timeout=GONE)[1]
            while head is not None and workers_of(head) and time.monotonic() < killed + GONE:
                time.sleep(0.1)
            left += workers_of(head) if head is not None else []
            assert not left, f"these outlived it: {left}"
            return f"the command ended with {ended}"
        time.sleep(0.02)
    return "it had ended before"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("photos", type=Path)
    words.add_argument("--count", type=int, default=500)
    words.add_argument("--shard", type=int, default=25)
    words.add_argument("--model", default="mini")
    words.add_argument("--repeats", type=int, default=1)
    words.add_argument("--kills", type=int, default=0)
    words.add_argument("--who", nargs="+", default=["worker", "driver"])
    words.add_argument("--seconds", type=float, default=1e9, help="begin no kill after these")
    words.add_argument("--cluster", action="store_true")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started ends with it
    photos = sorted(given.photos.iterdir())[: given.count]
    server = start_store()
    head = start_cluster() if given.cluster else None
    try:
        source = put_shards(photos, "photos", given.shard)
        if given.kills:
            chaos(source, given, head and head.pid)
        else:
            start = put_shards(photos[:2], "start", 1)
            measure(source, start, given.model, given.repeats)
    finally:
        for process in filter(None, (head, server)):
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
