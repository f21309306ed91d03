"""Runs the notebooks and stores what their cells show, small enough for the repository.

python tests/stored_notebooks.py [NAME ...]     # after a change of a notebook or of a model
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"


def executed(path: Path, work: Path) -> Any:
    """A notebook with what its cells show, run in a folder."""
    from nbclient import NotebookClient
    from nbformat import read

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(work), "HF_HUB_OFFLINE": "1"}
    notebook = read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
    return notebook


def small(notebook: Any) -> Any:
    """The same with pictures as JPEG, and nothing that changes from run to run."""
    for cell in notebook.cells:
        cell.metadata = {}
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            if "image/png" in (data := output.get("data", {})):
                data["image/jpeg"] = _jpeg(base64.b64decode(data.pop("image/png")))
                data["text/plain"] = "a picture"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _jpeg(png: bytes) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "JPEG", quality=82)
    return base64.b64encode(stream.getvalue()).decode()


def main(names: list[str]) -> None:
    """Stores the named notebooks, or all."""
    from nbformat import write

    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as work:
                write(small(executed(path, Path(work))), path)


if __name__ == "__main__":
    main(sys.argv[1:])
