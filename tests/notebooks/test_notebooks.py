"""Every notebook runs from its first cell to its last, on the shipped model."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest

from fourm_lite.cli import main

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_four_notebooks_are_there():
    assert [p.stem for p in NOTEBOOKS] == ["any_to_any", "finetune", "new_modality", "search"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own packages
        from nbclient import NotebookClient
        from nbformat import read

        notebook = read(path, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()

    shown = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(shown) >= 3


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
