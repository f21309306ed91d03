"""The training-style forward of rgb@224 -> tok_dinov2_global at 4M-21_B's size, batch 8.

    python -m pytest tests/benchmarks/bench_forward.py -m bench -s
    python tests/benchmarks/bench_forward.py --cpu-time      # 1 thread, CPU seconds

Its FLOPs over its time, as a share of a large float32 matrix product in the same run.
"""

from __future__ import annotations

import argparse
import json
import time

import pytest
import torch

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[:0] = [str(Path(__file__).parents[i]) for i in (0, 1, 2)]

from benchmarks.stopwatch import flops, machine, random_model, share_of_product

from fourm_lite.batch import TokenBatch, Tokens


def measure(*, threads: int = 2, repeats: int = 8, cpu_time: bool = False) -> dict[str, object]:
    torch.set_num_threads(1 if cpu_time else threads)
    model = random_model(["rgb@224"], ["tok_dinov2_global"])
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(8, 3, 224, 224, generator=generator)
    wanted = Tokens.wanted(model.modality("tok_dinov2_global"), 8)
    batch = TokenBatch({"rgb@224": Tokens.given(pixels, length=196), "tok_dinov2_global": wanted})

    def forward() -> None:
        with torch.inference_mode():
            model(batch, 196, 16)

    clock = time.process_time if cpu_time else time.perf_counter
    figures = {
        "bench": "forward", "clock": clock.__name__,
        **share_of_product(forward, flops(forward), repeats=repeats, clock=clock), **machine(),
    }  # fmt: skip
    print(json.dumps(figures), flush=True)
    return figures


@pytest.mark.bench
def test_the_forward_runs_at_the_rate_of_a_large_matrix_product():
    figures = measure()

    assert float(str(figures["share"])) >= 0.9


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    measure(threads=options.threads, repeats=options.repeats, cpu_time=options.cpu_time)
