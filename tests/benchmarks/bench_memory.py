"""Resident memory of `fourm-lite index` and `embed` while they go through many small photos.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_memory.py FOLDER [COUNT]

Makes COUNT photos (20,000) of 160 x 120 pixels in FOLDER, and a network of 48 numbers a photo, so
that nothing but the way of the photos counts. Each verb runs in a process of its own, whose VmRSS
is read twice a second; what it is after shares of the run is printed, and its peak.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        small.resize((160, 120), Image.Resampling.BILINEAR).save(folder / f"{i:05}.jpg")


def write_network(path: Path) -> None:
    """Means of 16 parts of a picture of 32 pixels."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["pixels"], ["grid"], kernel_shape=[8, 8], strides=[8, 8]
            ),
            helper.make_node("Flatten", ["grid"], ["embedding"]),
        ],
        "means",
        [helper.make_tensor_value_info("pixels", kind, ["B", 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", kind, ["B", 48])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )


def resident(process: int) -> float | None:
    """MB that a process holds; None once it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def watched(*arguments: str) -> tuple[list[float], float]:
    """MB over the time of a verb, twice a second, and its CPU seconds."""
    before = os.times()
    process = subprocess.Popen(
        [sys.executable, "-m", "fourm_lite", "-q", *arguments], stdout=subprocess.DEVNULL
    )
    held = []
    while process.poll() is None:
        now = resident(process.pid)
        held += [] if now is None else [now]
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}")
    after = os.times()
    spent = after.children_user + after.children_system
    return held, spent - before.children_user - before.children_system


def main(folder: Path, count: int) -> None:
    network, photos = folder / "means.onnx", folder / "photos"
    if not photos.exists():
        write_photos(photos, count)
    write_network(network)
    model = f"onnx:{network}"
    for verb, out in (("index", folder / "index"), ("embed", folder / "vectors.npy")):
        held, spent = watched(verb, str(photos), "-o", str(out), "-m", model)
        told = ", ".join(f"{s:.0%} {held[max(0, round(s * len(held)) - 1)]:.0f}" for s in SHARES)
        print(f"{verb} of {count} photos: MB after shares of the run {told}; peak "
              f"{max(held):.0f}; {spent:.0f} s of CPU", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)
