"""FMViT of the base size beside timm's vit_base_patch16_224, and its cheaper forms, on two threads.

    python -m pytest tests/benchmarks/bench_vit.py -m bench -s      # 4 minutes; -k flops, -k int8

One JSON line a measurement. The networks take turns in one process, so that what else the machine
does falls on all. On a shared machine a rate changes twofold within a minute, and the best of each
says little: read `ratio_of_turns`, the median over turns in which both ran one after the other.
FLOPs are counted by torch, not by a formula of ours.
"""

from __future__ import annotations

import json
import statistics
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fourm_lite.backbone import export
from fourm_lite.backbone.int8 import quantized
from fourm_lite.backbone.timm_models import build
from fourm_lite.nn.cpu_linear import Int8Linear

pytestmark = pytest.mark.bench

BATCH, THREADS, ROUNDS, TURNS = 8, 2, 4, 12
WALL, CPU = 0, 1
FLAVOURS = ["gelu", "swiglu_nobias"]


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def flops_of(model: torch.nn.Module, x: torch.Tensor) -> int:
    """Of the plain path, which asks for gradients: torch does not count oneDNN's own products."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@torch.inference_mode()
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


def of_turns(seconds: dict[str, list], flops: dict[str, int]) -> float:
    """The median over the turns of our FLOPs a second over timm's."""
    pairs = zip(seconds["fmvit"], seconds["timm"], strict=True)
    ratios = [theirs[WALL] / ours[WALL] for ours, theirs in pairs]
    return statistics.median(ratios) * flops["fmvit"] / flops["timm"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flops_a_second_beside_timm(flavour):
    import timm

    models = {
        "fmvit": build("base", flavour=flavour).eval(),
        "timm": timm.create_model("vit_base_patch16_224").eval(),
    }
    x = torch.randn(BATCH, 3, 224, 224)
    flops = {name: flops_of(model, x) for name, model in models.items()}

    seconds = in_turns(models, x, TURNS)

    wall, cpu = best(seconds, WALL), best(seconds, CPU)
    rates = {k: {n: flops[n] / t[n] / 1e9 for n in t} for k, t in (("wall", wall), ("cpu", cpu))}
    line = {
        "bench": "vit_forward", "flavour": flavour, "batch": BATCH, "threads": THREADS,
        "gflops_a_second": {n: round(v, 1) for n, v in rates["wall"].items()},
        "gflops_a_processor_second": {n: round(v, 1) for n, v in rates["cpu"].items()},
        "ratio_of_turns": round(of_turns(seconds, flops), 3),
        "ratio_wall": round(rates["wall"]["fmvit"] / rates["wall"]["timm"], 3),
        "ratio_processor": round(rates["cpu"]["fmvit"] / rates["cpu"]["timm"], 3),
    }  # fmt: skip
    print(json.dumps(line))
    assert line["ratio_of_turns"] > 0.9


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_int8_beside_float32(flavour):
    torch.manual_seed(0)
    model = build("base", flavour=flavour).eval()
    x = torch.randn(BATCH, 3, 224, 224)
    forms = {
        "float32": model,
        "int8": quantized(model, x[:2]),
        "int8, 2 fc2 a scale a token": _with_fc2_by_token(quantized(model, x[:2]), model, 2),
        "int8, 12 fc2 a scale a token": _with_fc2_by_token(quantized(model, x[:2]), model, 12),
        "int8, all a scale a token": quantized(model),
    }

    line = speedups(forms, x, flavour)

    print(json.dumps(line))
    assert line["speedup_wall"]["int8"] > 1.3


def _with_fc2_by_token(small, model, blocks):
    """`fc2` is where tokens may have unlike ranges; `mini` chooses so in 2 blocks of 12."""
    for block, plain in list(zip(small.encoder, model.encoder, strict=True))[:blocks]:
        block.mlp.fc2 = Int8Linear(plain.mlp.fc2)
    return small


def test_onnx_beside_float32(tmp_path):
    pytest.importorskip("onnxscript")
    model = build("base", flavour="gelu").eval()
    forms = {
        "float32": model,
        **{f: export.make(model, f, tmp_path) for f in ("onnx", "onnx-int8")},
    }

    print(json.dumps(speedups(forms, torch.randn(BATCH, 3, 224, 224), "gelu")))


def speedups(forms, x, flavour):
    """Milliseconds a batch of each form, and float32's over them."""
    seconds = in_turns(forms, x, 3)
    line = {"bench": "vit_int8", "flavour": flavour, "batch": BATCH, "threads": THREADS}
    for word, which in (("wall", WALL), ("processor", CPU)):
        found = best(seconds, which)
        line[f"ms_{word}"] = {n: round(1000 * t, 1) for n, t in found.items()}
        line[f"speedup_{word}"] = {n: round(found["float32"] / t, 2) for n, t in found.items()}
    return line
