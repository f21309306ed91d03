"""FMViT of the base size beside timm's vit_base_patch16_224, and its cheaper forms, on two threads.

    python -m pytest tests/benchmarks/bench_vit.py -m bench -s

One JSON line a measurement. The networks take turns in one process, so that what else the machine
does falls on all; on a shared machine the processor seconds are the ones to read. FLOPs are counted
by torch, not by a formula of ours.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fourm_lite.backbone import export
from fourm_lite.backbone.timm_models import build

pytestmark = pytest.mark.bench

BATCH, THREADS, ROUNDS = 8, 2, 5
WALL, CPU = 0, 1


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
    """Wall and processor seconds of each run in each round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(x)
            if i:  # the first round warms up
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


def best(seconds: dict[str, list], which: int) -> dict[str, float]:
    return {name: min(pair[which] for pair in pairs) for name, pairs in seconds.items()}


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

    wall, cpu = best(seconds, WALL), best(seconds, CPU)
    rates = {k: {n: flops[n] / t[n] / 1e9 for n in t} for k, t in (("wall", wall), ("cpu", cpu))}
    line = {
        "bench": "vit_forward", "flavour": flavour, "batch": BATCH, "threads": THREADS,
        "gflops_a_second": {n: round(v, 1) for n, v in rates["wall"].items()},
        "gflops_a_processor_second": {n: round(v, 1) for n, v in rates["cpu"].items()},
        "ratio_wall": round(rates["wall"]["fmvit"] / rates["wall"]["timm"], 3),
        "ratio_processor": round(rates["cpu"]["fmvit"] / rates["cpu"]["timm"], 3),
    }  # fmt: skip
    print(json.dumps(line))
    assert line["ratio_processor"] > 0.9


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

    line = {"bench": "vit_int8", "flavour": flavour, "batch": BATCH, "threads": THREADS}
    for word, which in (("wall", WALL), ("processor", CPU)):
        found = best(seconds, which)
        line[f"ms_{word}"] = {n: round(1000 * t, 1) for n, t in found.items()}
        line[f"speedup_{word}"] = {n: round(found["float32"] / t, 2) for n, t in found.items()}
    print(json.dumps(line))
    assert Path(tmp_path / "model.onnx").is_file()
