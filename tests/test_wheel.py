"""The wheel: what it holds, and that it works away from the source tree.

It is built from a copy, so that nothing is left in the checkout, and installed in an environment of
its own that sees the dependencies of the current one but not the project's source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(
    *(".*", "build", "dist", "*.egg-info", "__pycache__", "tests"),
    "runs",  # what recipes write: gigabytes after a training
)


def run(*command: object, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "source", ignore=NOT_COPIED)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The built wheel."""
    place = tmp_path_factory.mktemp("wheel")
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", place, source]
    run(sys.executable, *words, cwd=place)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh environment with the wheel; the dependencies come through a ``.pth`` line.

    A folder added by a ``.pth`` line has its own ``.pth`` files ignored, so an editable install of
    this project in the current environment stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--no-deps", "--no-index", "--ignore-installed", "--quiet", wheel),
        cwd=folder,
    )
    return folder


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in names_in(wheel)}

    assert len(tops) == 2
    assert {top.partition("-")[0] for top in tops} == {"fourm_lite"}


def test_the_wheel_holds_every_source_file_and_the_type_marker(wheel, source):
    files = {str(path.relative_to(source)) for path in (source / "fourm_lite").rglob("*.py")}

    assert files | {"fourm_lite/py.typed"} <= set(names_in(wheel))


def test_the_wheel_holds_no_test_and_no_python_among_the_assets(wheel):
    python = [name for name in names_in(wheel) if name.endswith(".py")]

    assert not [name for name in python if name.startswith("fourm_lite/assets/")]
    assert not [name for name in python if "test" in name.rsplit("/", 1)[-1].split("_")]


def test_the_installed_wheel_works_from_another_folder(environment, tmp_path):
    code = (
        "import fourm_lite, importlib.metadata as m\n"
        "fourm_lite.FourM\n"
        "print(fourm_lite.__file__)\n"
        "print(fourm_lite.__version__ == m.version('fourm-lite'), len(fourm_lite.MODALITIES) > 0)"
    )

    where, *facts = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).split()

    assert Path(where).is_relative_to(environment)
    assert facts == ["True", "True"]


def test_the_installed_command_tells_its_version(environment, tmp_path):
    code = "import fourm_lite; print(fourm_lite.__version__)"
    version = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip()

    assert version in run(environment / "bin" / "fourm-lite", "--version", cwd=tmp_path)


def test_the_demo_runs_from_the_wheel_in_another_folder(environment, tmp_path):
    from fourm_lite.demo.examples import drawings

    photos = tmp_path / "photos"
    photos.mkdir()
    for drawing in drawings(3):
        drawing.picture.save(photos / drawing.name)

    command = environment / "bin" / "fourm-lite"
    said = run(command, "demo", "--photos", photos, "--out", tmp_path / "out", cwd=tmp_path)

    page = Path(said.strip().splitlines()[-1])
    assert page.is_file()
    assert page.read_text().count("<img") > 10
