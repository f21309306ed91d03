"""Makes the neighbours of this folder importable by bare name, `from caseinfo import CaseInfo`."""

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent

# --import-mode=importlib leaves sys.path alone, so the checks could not share code without this
sys.path.insert(0, str(HERE))
pytest.register_assert_rewrite(*(path.stem for path in HERE.glob("kinds_*.py")))


@pytest.fixture(autouse=True)
def _more_threads():
    """The models of the cases are of real width, unlike those of the other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(os.cpu_count() or 1, 4))
    yield
    torch.set_num_threads(before)
