"""The steps of the Dockerfile, done without Docker: what is copied is enough to build and start."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def steps() -> list[tuple[str, str]]:
    """Instruction and the rest of each line."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def step(name: str) -> list[str]:
    """The words of an instruction in JSON form."""
    return next(json.loads(rest) for word, rest in steps() if word == name)


def run(*command: object, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """An environment with what `pip install .` makes of the copied files alone."""
    app = tmp_path_factory.mktemp("image") / "app"
    app.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for word, rest in steps():
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, app / Path(target).name, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, app / source)
    place = app.parent
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        place,
        app,
        cwd=place,
    )
    (wheel,) = place.glob("*.whl")
    environment = place / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=place)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=place)
    return environment


def test_the_image_serves_an_index_and_finds_itself_well(image, index, tmp_path):
    entry, *words = step("ENTRYPOINT")
    given = [str(index) if word == "/data/index" else word for word in step("CMD")]
    command = [image / "bin" / entry, *words, *given, "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"FOURM_LITE_TOKEN": "a-token"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    url = next((line.strip() for line in process.stderr if line.startswith("http://")), None)
    assert url is not None, "the server did not start"
    port = url.rpartition(":")[2]

    check = next(rest for word, rest in steps() if word == "HEALTHCHECK")
    _, code = json.loads(check[check.index("[") :])[1:]
    run(image / "bin" / "python", "-c", code.replace("8000", port), cwd=tmp_path)

    process.terminate()
    process.communicate(timeout=30)


def test_the_port_of_the_image_is_the_usual_one():
    from inspect import signature

    from fourm_lite.cli.serve import serve

    exposed = next(rest for word, rest in steps() if word == "EXPOSE")
    assert int(exposed) == signature(serve).parameters["port"].default
