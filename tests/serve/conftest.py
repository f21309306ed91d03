"""A server process on loopback, over an index of drawn photos made by a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_pipeline import photo, save_pipeline

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

CAPTIONS = ("a red circle", "a blue square", "two dogs", "a green circle on the left")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running server; `stop` returns how it ended."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]
    reader: threading.Thread

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        ended = self.process.wait(timeout=30)
        self.reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return ended


def start(*words: str, verb: str = "serve", **environment: str) -> Server:
    """Starts `fourm-lite serve` at a free port and waits until it answers."""
    command = [sys.executable, "-m", "fourm_lite", verb, *words, "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    log: list[str] = []
    for line in process.stderr:
        log.append(line.strip())
        if line.startswith("http://"):
            break
    else:
        pytest.fail(f"the server ended with {process.wait()}: {log}")
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    return Server(process, log[-1], log, reader)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    rows = []
    for i in range(12):
        photo(i).save(folder / "images" / f"{i:02d}.png")
        row = {"id": f"shelf/{i:02d}", "file": f"images/{i:02d}.png"}
        rows.append(row | {"captions": [CAPTIONS[i % 4]], "year": 2015 + i})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    return folder


def make_index(path: Path, model: Path, photos: Path) -> Path:
    from fourm_lite.search.gallery import index_photos, open_index
    from fourm_lite.search.spaces import open_space

    space = open_space(model)
    index_photos([photos / "captions.jsonl"], open_index(path, space), space)
    return path


@pytest.fixture(scope="session")
def index(tmp_path_factory, model, photos) -> Path:
    return make_index(tmp_path_factory.mktemp("index") / "photos.idx", model, photos)


@pytest.fixture(scope="session")
def server(index):
    running = start(str(index), "--max-body", "1", "--max-k", "50")
    yield running
    running.stop()
