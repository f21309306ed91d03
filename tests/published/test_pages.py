"""Every block of the pages for users runs with published names, the network closed.

docs/coming-from.md has its own runner, `tests/embedders/test_coming_from.py`: its section on 4M's
repository runs there on the same cache.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest

from fourm_lite.cli import main
from fourm_lite.demo.examples import draw, drawings, make_gallery

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODEL = "EPFL-VILAB/4M-21_B"
PAGES = {
    name: FENCE.findall((ROOT / name).read_text("utf-8"))
    for name in ("README.md", "docs/published.md")
}
# Training runs and networks that this cache does not hold; they have tests of their own (the
# galleries in test_galleries.py)
OTHERS = (
    "fourm-lite serve", "demo --serve", "joint", "fourm-lite train", "fourm-lite add-embedding",
    "--model grown", ".venv/bin/",
    "--gallery dinov2", "index calibrate",  # the latter moves what was fitted, as for mini
)  # fmt: skip


def commands(page: str) -> list[str]:
    """The commands of a page in their order, with a published model in place of mini."""
    shell = "\n".join(text for language, text in PAGES[page] if language == "sh")
    lines = [line.partition(" #")[0].strip() for line in shell.splitlines()]
    lines = [line for line in lines if line.startswith("fourm-lite ")]
    return [_with_model(line) for line in lines if not any(word in line for word in OTHERS)]


def _with_model(line: str) -> str:
    line = line.replace("--model mini", f"--model {MODEL}")
    asks = line.startswith(("fourm-lite index", "fourm-lite evaluate")) and "--model" not in line
    return f"{line} --model {MODEL}" if asks else line


@pytest.fixture
def world(published, tmp_path, monkeypatch):
    """The files that the pages name, drawn."""
    monkeypatch.chdir(tmp_path)
    draw("red", "circle", "white", 0.5, size=224).save("photo.jpg")
    make_gallery(None, Path("photos"))
    Path("PHOTOS").mkdir()
    rows = []
    for number, drawing in enumerate(drawings(6, size=96, seed=0)):
        drawing.picture.save(f"PHOTOS/{number}.png")
        for folder in ("FLOWERS", "LABELLED/test"):
            place = Path(folder, "even" if number % 2 == 0 else "odd", f"{number}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            drawing.picture.save(place)
        file = f"images/{number}.png"
        Path("FOLDER", file).parent.mkdir(parents=True, exist_ok=True)
        drawing.picture.save(Path("FOLDER", file))
        split = "val" if number % 2 else "test"
        rows.append({"id": str(number), "file": file, "split": split,
                     "captions": [drawing.caption]})  # fmt: skip
    Path("FOLDER/captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


NAMES = {
    '"mini"': f'"{MODEL}"',
    '"tok_semseg_mini"': '"tok_semseg@224"',
    '"tok_edge_mini"': '"tok_canny_edge@224"',
}
"""What a page names of the model that ships, and what that is in a published one."""


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_with_published_names(page, world):
    namespace: dict[str, object] = {"__name__": "page"}

    for number, (language, text) in enumerate(PAGES[page], start=1):
        if language == "python":
            code = reduce(lambda code, pair: code.replace(*pair), NAMES.items(), text)
            exec(compile(code, f"{page}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_with_published_names(page, world, capsys):
    lines = commands(page)

    assert len(lines) > 8
    for line in lines:
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line, comments=True)[1:])
        told = capsys.readouterr()
        assert not stopped.value.code, f"{line}\n{told.err}"
