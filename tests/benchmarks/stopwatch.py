"""What the speed benchmarks share: a model of 4M-21_B's size, a calibration, fair timing.

The machines these run on are shared, so one figure means little: every repeat measures a large
float32 matrix product beside the cases, the best of all repeats counts, and ratios are reported.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM

SIZE = 2048
B21 = {
    "dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12, "mlp_ratio": 4,
    "act_layer": "SiLU", "gated_mlp": True, "norm_bias": False, "qkv_bias": False,
    "proj_bias": False, "mlp_bias": False, "share_modality_embeddings": False,
}  # fmt: skip


def random_model(inputs: Sequence[str], outputs: Sequence[str]) -> FourM:
    """The trunk of 4M-21_B with only the modalities that are needed; random weights."""
    entries = {
        side: tuple(MODALITIES[name] for name in names)
        for side, names in (("inputs", inputs), ("outputs", outputs))
    }
    model = FourM(FourMConfig(**entries, **B21))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.02, generator=generator)
    return model.eval()


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _onednn_flops(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """What torch does not count itself: `fourm_lite.nn.layers` on CPUs that are not Intel's."""
    return 2 * math.prod(x) * weight[0]


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def synchronized(run: Callable[[], object], device: str) -> None:
    run()
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    matrix: int = SIZE,
) -> dict[str, float]:
    """The best seconds of every case, and `FLOP/s` of the calibration in the same minutes."""
    # random: a GPU multiplies constants faster than numbers
    a = torch.randn(matrix, matrix, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best = dict.fromkeys(["calibration", *cases], float("inf"))
    for run in (lambda: a @ a, *cases.values()):
        synchronized(run, device)  # warm
    for _ in range(repeats):
        for name, run in cases.items():
            for one, timed in (("calibration", lambda: a @ a), (name, run)) * 1:
                for _ in range(3 if one == "calibration" else 1):
                    start = clock()
                    synchronized(timed, device)
                    best[one] = min(best[one], clock() - start)
    return {**best, "FLOP/s": 2 * matrix**3 / best.pop("calibration")}


def share_of_product(
    run: Callable[[], object], work: int, *, repeats: int, clock: Callable[[], float]
) -> dict[str, object]:
    """The rate of `run`, which is `work` FLOPs, as a share of a large product's beside it.

    Other jobs take the cores for seconds at a time. So the product is repeated for about as long as
    `run` takes, just before and just after it, and medians count: a short one would catch moments
    in which nobody else ran.
    """
    matrix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    count = max(1, round(work / (2 * SIZE**3)))

    def products() -> None:
        for _ in range(count):
            matrix @ matrix

    def rate(one: Callable[[], object], amount: int) -> float:
        start = clock()
        one()
        return amount / (clock() - start)

    run()  # warm
    large = count * 2 * SIZE**3
    before, rates, beside = rate(products, large), [], []
    for _ in range(repeats):
        rates.append(rate(run, work))
        after = rate(products, large)
        beside.append((before + after) / 2)
        before = after
    shares = [own / large for own, large in zip(rates, beside, strict=True)]
    return {
        "seconds": work / statistics.median(rates),
        "GFLOP/s": statistics.median(rates) / 1e9,
        "calibration_GFLOP/s": statistics.median(beside) / 1e9,
        "share": statistics.median(shares),
        "shares": [round(share, 3) for share in shares],
    }


def peak_gb(script: str, *arguments: str) -> float:
    """Peak memory of a fresh process that runs one case once, interpreter and torch included."""
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_gb"])


def own_peak_gb() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def machine() -> dict[str, object]:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    folder = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True
    )
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "cpu": cpu[1] if cpu else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }
