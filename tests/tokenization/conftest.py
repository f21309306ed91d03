"""Makes the neighbours of this folder importable by bare name; fresh weights repeat."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(autouse=True)
def _same_fresh_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
