"""Puts what we ship (tokenizers/, generation/) into the wheel as fourm_lite/assets/.

Everything else about the build stands in pyproject.toml. Why not package data: the two folders lie
at the root and hold no Python, see docs and DESIGN section 6.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("tokenizers", "generation")
SUFFIXES = {".toml", ".md", ".json", ".safetensors", ".onnx"}


class BuildWithAssets(build_py):
    """build_py, then the copies; an editable install reads the folders at the root instead."""

    def run(self) -> None:
        """Builds the package and copies the shipped files beside it."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._asset_pairs():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files of the package and the copies."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return outputs + [target for _, target in self._asset_pairs()]

    def get_source_files(self) -> list[str]:
        """What a source distribution needs."""
        files: list[str] = super().get_source_files()
        return files + [source for source, _ in self._asset_pairs()]

    def _asset_pairs(self) -> list[tuple[str, str]]:
        """(file at the root, its copy below build_lib) for every shipped file."""
        root = Path(__file__).resolve().parent
        files = (path for name in SHIPPED for path in sorted((root / name).rglob("*")))
        inside = (p.relative_to(root) for p in files if p.is_file() and p.suffix in SUFFIXES)
        target = Path(self.build_lib) / "fourm_lite" / "assets"
        return [(str(p), str(target / p)) for p in inside if not _is_hidden(p)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


setup(cmdclass={"build_py": BuildWithAssets})
