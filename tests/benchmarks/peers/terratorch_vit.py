"""TerraTorch's TerraMind backbone on given weights, one pass for every line that comes in.

Run by `bench_neighbours.py`, by the Python of an environment in which terratorch is installed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from terratorch.registry import BACKBONE_REGISTRY


def main(given: Path, cpu: bool) -> None:
    held = torch.load(given, weights_only=True)
    model = BACKBONE_REGISTRY.build("terramind_v1_base", pretrained=False, modalities=["S2L2A"])
    own = {name: value for name, value in held["weights"].items() if name in model.state_dict()}
    lacking = set(model.state_dict()) - set(own)
    if lacking:
        raise SystemExit(f"weights of {sorted(lacking)[:5]} are not given")
    model.load_state_dict(own)
    model.eval()
    # importing terratorch sets "medium", by which products are bfloat16 where a CPU has them
    torch.set_float32_matmul_precision("highest")
    clock = time.process_time if cpu else time.perf_counter
    for _ in sys.stdin:
        start = clock()
        with torch.inference_mode():
            found = model({"S2L2A": held["tiles"]})[-1]
        print(clock() - start, flush=True)
        torch.save(found, given.with_suffix(".out"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "1")
