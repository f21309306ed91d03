"""What the comparisons share: cases in turn in one process, medians, extremes and ratios.

The machines are shared. So cases take turns, round after round, and the ratio to the first case is
that of the medians; the least and the largest stand beside them. `cpu` counts the CPU seconds of
the process, which the time of others does not enter.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def take_turns(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, cpu: bool = False, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every case in every round."""
    clock = time.process_time if cpu else time.perf_counter
    for run in list(cases.values()) * warm:
        run()
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = clock()
            run()
            spent[name].append(clock() - start)
    return spent


def tell(title: str, spent: Mapping[str, list[float]], *, unit: float = 1e3) -> None:
    """Prints a line a case: median, extremes, and how many times faster than the first case."""
    print(f"{title} (load {os.getloadavg()[0]:.1f})", flush=True)
    first = statistics.median(next(iter(spent.values())))
    for name, times in spent.items():
        middle = statistics.median(times)
        line = f"  {name:44} {middle * unit:10.2f}  [{min(times) * unit:.2f} .. "
        print(f"{line}{max(times) * unit:.2f}]  {first / middle:5.2f} x", flush=True)


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that computes all the time."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()
