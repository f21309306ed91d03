"""Drives every golden case through the check of its kind.

A ``kinds_*.py`` beside this file offers ``CHECKS: dict[str, Callable[[CaseInfo], None]]``, kind to
check; a check asserts.
``FOURM_GOLDEN=/another/folder pytest tests/parity`` runs other cases.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from caseinfo import CaseInfo, case_names, golden_folder, open_case, open_store, read_json

pytestmark = pytest.mark.parity

Check = Callable[[CaseInfo], None]

FOLDER = golden_folder()
ABSENT = not (FOLDER / "manifest.json").is_file() and "FOURM_GOLDEN" not in os.environ
MANIFEST = {} if ABSENT else read_json(FOLDER / "manifest.json")
NAMES = (
    [pytest.param("", id="none", marks=pytest.mark.skip(reason=f"no golden cases in {FOLDER}"))]
    if ABSENT
    else list(case_names(FOLDER, MANIFEST))
)


def gather_checks() -> dict[str, Check]:
    """The checks of all neighbours; two for one kind is an error."""
    checks: dict[str, Check] = {}
    for path in sorted(Path(__file__).resolve().parent.glob("kinds_*.py")):
        for kind, check in importlib.import_module(path.stem).CHECKS.items():
            if kind in checks:
                raise ValueError(f"kind '{kind}' is checked twice, once in {path.name}")
            checks[kind] = check
    return checks


CHECKS = gather_checks()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("checkpoints"), FOLDER)


@pytest.mark.parametrize("name", NAMES)
def test_case_gives_the_numbers_of_the_original(name, store):
    case = open_case(FOLDER, MANIFEST, name, store)
    kind = case.case["kind"]

    assert kind in CHECKS, f"no kinds_*.py checks the kind '{kind}' (known: {sorted(CHECKS)})"
    CHECKS[kind](case)
