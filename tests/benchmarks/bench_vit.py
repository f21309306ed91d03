"""FMViT of the base size beside timm's vit_base_patch16_224, and its cheaper forms, on two threads.

    python -m pytest tests/benchmarks/bench_vit.py -m bench -s

One JSON line a measurement. The two networks take turns in one process, so that what else the
machine does falls on both. FLOPs are counted by torch, not by a formula of ours.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fourm_lite.backbone import export
from fourm_lite.backbone.timm_models import build

pytestmark = pytest.mark.bench

BATCH, THREADS, ROUNDS = 8, 2, 5


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def flops_of(model: torch.nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def in_turns(runs: dict[str, object], x: torch.Tensor, rounds: int = ROUNDS) -> dict[str, list]:
    """Seconds of each run in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(x)
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


@pytest.mark.parametrize("flavour", ["gelu", "swiglu_nobias"])
@torch.inference_mode()
def test_flops_a_second_beside_timm(flavour):
    import timm

    models = {
        "fmvit": build("base", flavour=flavour).eval(),
        "timm": timm.create_model("vit_base_patch16_224").eval(),
    }
    x = torch.randn(BATCH, 3, 224, 224)
    flops = {name: flops_of(model, x) for name, model in models.items()}

    seconds = in_turns(models, x)

    rate = {name: flops[name] / min(seconds[name]) / 1e9 for name in models}
    pairs = [
        (flops["fmvit"] / a) / (flops["timm"] / b)
        for a, b in zip(seconds["fmvit"], seconds["timm"], strict=True)
    ]
    line = {
        "bench": "vit_forward", "flavour": flavour, "batch": BATCH, "threads": THREADS,
        "gflops_a_second": {k: round(v, 1) for k, v in rate.items()},
        "ms": {k: round(1000 * min(v), 1) for k, v in seconds.items()},
        "ratio_best": round(rate["fmvit"] / rate["timm"], 3),
        "ratio_median_of_pairs": round(statistics.median(pairs), 3),
    }  # fmt: skip
    print(json.dumps(line))
    assert line["ratio_median_of_pairs"] > 0.9


@pytest.mark.parametrize("flavour", ["gelu", "swiglu_nobias"])
@torch.inference_mode()
def test_int8_beside_float32(flavour, tmp_path):
    torch.manual_seed(0)
    model = build("base", flavour=flavour).eval()
    x = torch.randn(BATCH, 3, 224, 224)
    forms = {"float32": model, **{f: export.make(model, f, tmp_path) for f in ("int8",)}}
    for form in ("onnx", "onnx-int8"):
        try:
            forms[form] = export.make(model, form, tmp_path)
        except Exception as error:
            print(json.dumps({"bench": "vit_int8", "form": form, "error": str(error)[:200]}))

    seconds = in_turns(forms, x, 4)

    best = {name: min(values) for name, values in seconds.items()}
    speedup = {n: round(best["float32"] / s, 2) for n, s in best.items()}
    ms = {n: round(1000 * s, 1) for n, s in best.items()}
    print(json.dumps({"bench": "vit_int8", "flavour": flavour, "batch": BATCH, "threads": THREADS,
                      "ms": ms, "speedup": speedup}))  # fmt: skip
    assert Path(tmp_path / "model.onnx").is_file()
