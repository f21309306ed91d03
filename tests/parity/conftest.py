"""Makes the neighbours of this folder importable by bare name, `from caseinfo import CaseInfo`."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

# --import-mode=importlib leaves sys.path alone, so the checks could not share code without this
sys.path.insert(0, str(HERE))
pytest.register_assert_rewrite(*(path.stem for path in HERE.glob("kinds_*.py")))
