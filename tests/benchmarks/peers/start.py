"""One query on the command line beside `import torch`: CPU seconds of fresh processes, in turn.

python tests/benchmarks/peers/start.py INDEX
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from turns import tell

PYTHON = [sys.executable, "-c"]
VERB = [sys.executable, "-m", "fourm_lite"]


def cpu_seconds(command: list[str]) -> float:
    """What the command took of the processor, by itself and in the kernel for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as an installed package has it
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(index: str) -> None:
    cases = {
        "import torch": [*PYTHON, "import torch"],
        "import lancedb": [*PYTHON, "import lancedb"],
        "import lance": [*PYTHON, "import lance"],
        "fourm-lite --help": [*VERB, "--help"],
        "fourm-lite index info": [*VERB, "index", "info", index],
        "fourm-lite search": [*VERB, "search", index, "--caption", "a dog on a beach"],
    }
    for command in cases.values():
        cpu_seconds(command)
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(5):
        for name, command in cases.items():
            spent[name].append(cpu_seconds(command))
    tell("start, CPU seconds of a fresh process", spent, unit=1)


if __name__ == "__main__":
    main(sys.argv[1])
