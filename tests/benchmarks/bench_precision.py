"""What each precision costs and gives: a model of 4M-21_B's trunk with random weights, one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_precision.py FOLDER

Opening is timed in fresh processes, which also say the most memory that they took; the rest takes
turns in one process. FOLDER gets the model, 0.9 GB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model
from fourm_lite.nn.cpu_linear import RoundedLinear

if __name__ == "__main__":
    HERE = Path(__file__).parent
    sys.path[:0] = [str(place) for place in (HERE / "peers", HERE.parent, HERE.parent.parent)]

from benchmarks.bench_generate import EMBED, MODELS, generate, photos
from benchmarks.stopwatch import own_peak_gb, random_model
from turns import take_turns, tell

DTYPES = ("float32", "bfloat16", "float16", "int8")
ROUNDS = 5


def held_gb(model: FourM) -> float:
    """Bytes of its tensors, rounded maps included."""
    plain = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    rounded = [m for m in model.modules() if isinstance(m, RoundedLinear)]
    return (sum(plain.values()) + sum(v.nbytes for m in rounded for v in m.stored().values())) / 1e9


def opened(folder: str, dtype: str) -> None:
    """One opening, every weight read; prints what it took, and the floor beneath it."""
    floor, start = own_peak_gb(), time.process_time()
    model = load_model(folder, dtype=dtype)
    for tensor in model.parameters():
        tensor.sum()
    spent = time.process_time() - start
    print(json.dumps({"s": spent, "peak": own_peak_gb(), "floor": floor, "held": held_gb(model)}))


def openings(folder: Path) -> None:
    found: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in DTYPES}
    for _ in range(3):
        for dtype in DTYPES:
            command = [sys.executable, __file__, str(folder), dtype]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
            found[dtype].append(json.loads(told.stdout.splitlines()[-1]))
    tell("opening, CPU s", {d: [r["s"] for r in rows] for d, rows in found.items()}, unit=1)
    for dtype, rows in found.items():
        peak = statistics.median(r["peak"] for r in rows)
        least = rows[0]["floor"] + rows[0]["held"]
        print(f"  {dtype:10} peak {peak:.2f} GB, {peak / least:.2f} of interpreter, torch and "
              f"tensors ({least:.2f} GB, of which tensors {rows[0]['held']:.2f})")  # fmt: skip


def main(folder: Path) -> None:
    if not (folder / "model.safetensors").exists():
        random_model(*MODELS["embed"]).save(folder)
    openings(folder)
    models = {dtype: load_model(folder, dtype=dtype) for dtype in DTYPES}
    for size in (8, 1):
        cases = {d: partial(generate, models[d], photos(size), EMBED) for d in DTYPES}
        spent = take_turns(cases, rounds=ROUNDS, cpu=True)
        tell(f"photo to DINOv2 tokens, batch {size}, CPU s", spent, unit=1)
    with torch.inference_mode():
        means = {d: m.encode(photos(8)).output.float().mean(dim=1) for d, m in models.items()}
    for dtype, mean in means.items():
        cosines = torch.nn.functional.cosine_similarity(mean, means["float32"])
        print(f"  {dtype:10} cosine of the encoder's mean, least of 8: {cosines.min():.7f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        opened(sys.argv[1], sys.argv[2])
    else:
        main(Path(sys.argv[1]))
