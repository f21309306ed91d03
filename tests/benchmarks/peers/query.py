"""One caption -> embedding with 4M-21_B's size, alone and beside a busy process, on two threads.

python tests/benchmarks/peers/query.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stopwatch import random_model
from turns import busy_process, take_turns, tell

import fourm_lite.nn.device as threads
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.sampling.plan import Plan
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.sampling.target import Target


def main() -> None:
    torch.set_num_threads(2)
    model = random_model(["caption"], ["tok_dinov2_global"])
    caption = torch.cat([torch.randint(100, 20_000, (1, 12)), torch.tensor([[3]])], dim=1)
    batch = TokenBatch({"caption": Tokens.given(caption, length=13)})
    plan = Plan.of(Target("tok_dinov2_global", scheme="roar", steps=1, temperature=0.0))

    def ours() -> object:
        return Sampler(model).run(batch, plan)

    def all_threads() -> object:
        before, threads.ALL_FROM = threads.ALL_FROM, 0
        try:
            return ours()
        finally:
            threads.ALL_FROM = before

    cases = {"all threads": all_threads, "threads by the size of the work": ours}
    tell("caption -> embedding, ms", take_turns(cases, rounds=12))
    with busy_process():
        tell("the same beside a busy process, ms", take_turns(cases, rounds=12))


if __name__ == "__main__":
    main()
