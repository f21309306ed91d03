"""Every notebook runs from its first cell to its last, and holds what a run of it shows."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
from stored_notebooks import executed

from fourm_lite.cli import main

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST = 600_000
"""Bytes of a notebook with what it shows."""
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_the_four_notebooks_are_there():
    assert [p.stem for p in NOTEBOOKS] == ["any_to_any", "finetune", "new_modality", "search"]


@each
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "TMPDIR", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # put back after the run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own packages
        notebook = executed(path, tmp_path)

    assert _shown(notebook) == _shown(json.loads(path.read_text(encoding="utf-8")))


def _shown(notebook):
    """How many things each cell shows; warnings do not count."""
    outputs = [cell.get("outputs", ()) for cell in notebook["cells"]]
    return [sum(o.get("name") != "stderr" for o in found) for found in outputs]


@each
def test_a_notebook_holds_what_it_shows_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]

    assert sum(bool(cell["outputs"]) for cell in code) >= 3
    assert not [output for cell in code for output in cell["outputs"] if "ename" in output]
    assert all(cell["execution_count"] == number for number, cell in enumerate(code, 1))
    assert len(text) < MOST


def test_commands_that_notebooks_name_exist(capsys):
    named = [
        command.split()[1:]
        for path in NOTEBOOKS
        for command in re.findall(r"`(fourm-lite [^`]+)`", path.read_text(encoding="utf-8"))
    ]
    assert named

    for verb, *words in named:
        with pytest.raises(SystemExit, match="0"):
            main([verb, "--help"])
        told = capsys.readouterr().out
        unknown = [w for w in words if w.startswith("-") and w.split("=")[0] not in told]
        assert not unknown, f"fourm-lite {verb} has no {unknown}"
