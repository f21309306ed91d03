"""Every door gives a result or a FourMError, within 10 seconds and a bound of memory.

A small share runs with the suite; `make fuzz` tries 20,000 cases (FUZZ_CASES, over all doors).
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm_lite.reading.regular import budget, set_budget

from .doors import DOORS, SLOW
from .limits import within_limits

CASES = int(os.environ.get("FUZZ_CASES", "0"))
FEW, FEWER = 40, 8  # of a quick and of a slow door, with the suite
WEIGHT = 5  # so many cases of a quick door for one of a slow one


def cases(name: str) -> int:
    """How many cases of a door are tried."""
    if not CASES:
        return FEWER if name in SLOW else FEW
    shares = sum(1 if other in SLOW else WEIGHT for other in DOORS)
    return max(1, round(CASES * (1 if name in SLOW else WEIGHT) / shares))


@pytest.fixture(autouse=True)
def _small_budget():
    before = budget()
    set_budget(bytes=1 << 26)
    yield
    set_budget(bytes=before.bytes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(DOORS))
def test_a_door_gives_a_result_or_our_error(name):
    @settings(
        max_examples=cases(name), deadline=None, database=None, derandomize=not CASES,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def tried(draw: random.Random) -> None:
        with tempfile.TemporaryDirectory() as folder, within_limits():
            DOORS[name](draw, Path(folder))

    tried()
