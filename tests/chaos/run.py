"""Kills and crowds: `make chaos`, or a small budget of it in CI.

    python tests/chaos/run.py --kills 1000 --seconds 600

Exits with 1 where a chain of kills does not end as an uninterrupted run, a run cannot go on, or a
reader of a shared index gets a wrong row or an exception.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child must not wait for others' threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])


def main() -> int:
    """Runs what is asked for and prints the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600, help="of readers and writers")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="chaos-"))
    start, bad, report = time.monotonic(), 0, {"seed": asked.seed}
    if asked.kills:
        counts = _kills(work, asked.kills, asked.seed)
        bad += sum(c.other + c.refused for c in counts.values())
        report["kills"] = {name: asdict(count) for name, count in counts.items()}
        report["kills in all"] = sum(c.kills for c in counts.values())
        report["chains in all"] = sum(c.chains for c in counts.values())
    if asked.seconds:
        from chaos.sharing import share

        done = share(work, asked.seconds)
        bad += sum(n for what, n in done.items() if what not in ("reads", "writes"))
        report["shared index"] = dict(done)
    print(json.dumps({**report, "bad": bad, "took": round(time.monotonic() - start)}, indent=1))
    if not bad:
        shutil.rmtree(work)
    return int(bad > 0)


def _kills(work: Path, kills: int, seed: int):  # type: ignore[no-untyped-def]
    import torch

    torch.set_num_threads(1)
    import accelerate  # noqa: F401  imported before the fork: a kill must not wait for it
    import timm  # noqa: F401
    import torch.distributed.checkpoint.state_dict
    from chaos.cases import write_inputs
    from chaos.kills import in_child, kill_all

    import fourm_lite.finetune.finetune
    import fourm_lite.pipeline.pipeline
    import fourm_lite.training.loop  # noqa: F401

    here = work / "prepared"
    here.mkdir()
    in_child(here, lambda: write_inputs(here / "inputs"))[1]()
    return kill_all(here / "inputs", work, kills, seed, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
