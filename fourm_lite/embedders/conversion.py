"""`fourm-lite convert`: whatever a neighbour's toolkit left behind, to a folder of ours.

Each kind of source is an entry of `KINDS`: how it is told apart, and what writes it. Files are
opened by `pth.py`, so nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.embedders.convert import CONVERSIONS, Converted, convert_pth
from fourm_lite.embedders.feature_files import GEOMETRY, NAMES, SUFFIXES, is_table
from fourm_lite.embedders.features import split_features
from fourm_lite.embedders.mmt.load import convert_joint
from fourm_lite.embedders.mmt.saved import MODULES
from fourm_lite.embedders.mobileclip.load import convert_mobileclip
from fourm_lite.embedders.pth import SUFFIXES as WEIGHTS
from fourm_lite.embedders.pth import Weights, load_plain, read_pth
from fourm_lite.embedders.terramind_files import (
    convert_terramind,
    convert_terramind_tokenizer,
    is_terramind,
    is_terramind_tokenizer,
)
from fourm_lite.errors import CheckpointError, ConfigError, check_choice
from fourm_lite.families.joint import JOINT_FAMILIES
from fourm_lite.families.mobileclip import MOBILECLIP, OPEN_CLIP_FILES
from fourm_lite.progress import Progress


class Source:
    """A file or folder, opened once however many kinds look at it."""

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path, self.progress = path, progress

    @cached_property
    def file(self) -> Path | None:
        """The pickled file: the source itself, or the only one in a folder."""
        if self.path.is_file():
            return self.path if self.path.suffix in WEIGHTS else None
        files = [p for p in self.below if p.suffix in WEIGHTS]
        return files[0] if len(files) == 1 else None

    @cached_property
    def held(self) -> object:
        """What the file holds; None where there is none."""
        return None if self.file is None else load_plain(self.file, arrays=True)

    @cached_property
    def weights(self) -> Weights:
        """The tensors of the file by name; none where there is none."""
        return {} if self.file is None else read_pth(self.file).weights

    @property
    def below(self) -> list[Path]:
        """The files of a folder."""
        return sorted(p for p in self.path.iterdir() if p.is_file()) if self.path.is_dir() else []


@dataclass(frozen=True)
class Kind:
    """One kind of source: how it is recognised, and what writes it to a folder.

    `write` gives what it is, for people, and how many things were written.
    """

    fits: Callable[[Source], bool]
    write: Callable[[Source, Path], tuple[str, int]]

    def converted(self, source: Source, folder: Path) -> Converted:
        """What was written."""
        return Converted(folder, *self.write(source, folder), ())


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    family: str | None = None,
    part: str | None = None,
    half: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Writes `folder` from a published file or folder; its kind is found unless it is given.

    `part` and `half` are as in `convert_pth`, for files of weights that it reads; `progress` is
    told how many items of features are done.

    Raises:
        CheckpointError: nothing is there, or it cannot be read
        ConfigError: an unknown family, or the source is not of it
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(f"expected a file or folder to convert, '{path}' does not exist")
    if family is not None:
        check_choice("family", family, of=[*KINDS, *CONVERSIONS])
    opened = Source(path, progress)
    if half and (family in KINDS or _kind_of(opened, family, part) is not None):
        raise ConfigError(f"'{path}' keeps its own numbers; `half` is for files of plain weights")
    if family in KINDS:
        return KINDS[family].converted(opened, Path(folder))
    if (kind := _kind_of(opened, family, part)) is not None:
        return kind.converted(opened, Path(folder))
    if path.is_dir():
        raise ConfigError(
            f"'{path}' is no folder of a known kind ({', '.join(KINDS)}); give the file of weights"
        )
    return convert_pth(path, folder, family=family, part=part, half=half)


def _kind_of(opened: Source, family: str | None, part: str | None) -> Kind | None:
    """The kind of a source that is recognised, where none is given."""
    if family is not None or part is not None:
        return None
    return next((kind for kind in KINDS.values() if kind.fits(opened)), None)


def _is_features(source: Source) -> bool:
    """Tables, Oscar's dictionary of ids, M3P's files of pictures, or a folder of any of them."""
    if source.path.is_dir():
        files = source.below
        pickles = [p for p in files if p.suffix in WEIGHTS]
        return any(is_table(p) for p in files) or (
            any(p.suffix in SUFFIXES for p in files)
            and not any(p.name in (MODULES, "config.json") for p in files)
            and not any(_holds_weights(p) for p in pickles[:1])
        )
    if is_table(source.path) or source.path.suffix == ".npz":
        return True
    held = source.held
    if not isinstance(held, dict) or not held:
        return False
    has_boxes = any(n in held for n in NAMES["features"]) and any(n in held for n in NAMES["boxes"])
    return has_boxes or all(_is_row(str(key), value) for key, value in held.items())


def _is_row(key: str, table: Any) -> bool:
    """Whether this is an id with the regions of Oscar: behind the features stand parts of 1."""
    if not any(map(str.isdigit, key)) or getattr(table, "ndim", 0) != 2:
        return False
    rows = np.asarray(table)
    if rows.shape[1] <= GEOMETRY or rows.dtype.kind != "f":
        return False
    places = rows[:, -GEOMETRY:]
    return bool((places >= -0.01).all() and (places <= 1.01).all())


def _holds_weights(path: Path) -> bool:
    held = load_plain(path, arrays=True)
    return isinstance(held, dict) and any("." in str(key) for key in held)


def _is_joint(source: Source) -> bool:
    if any(p.name == MODULES for p in source.below):
        return True
    return any(f.owns(source.weights) for f in JOINT_FAMILIES.values())


def _write_joint(source: Source, folder: Path) -> tuple[str, int]:
    saved = convert_joint(source.path, folder)
    return f"mmt ({saved.config.layout.title})", len(saved.weights)


def _is_mobileclip(source: Source) -> bool:
    named = source.file is not None and source.file.stem.lower() in OPEN_CLIP_FILES
    return named or MOBILECLIP.owns(source.weights)


KINDS: dict[str, Kind] = {
    "features": Kind(
        _is_features,
        lambda s, folder: ("features", len(split_features(s.path, folder, s.progress))),
    ),
    "mmt": Kind(_is_joint, _write_joint),
    "mobileclip": Kind(
        _is_mobileclip, lambda s, folder: ("mobileclip", convert_mobileclip(s.path, folder))
    ),
    "terramind": Kind(
        lambda s: is_terramind(s.weights),
        lambda s, folder: ("terramind", convert_terramind(s.weights, folder)),
    ),
    "terramind_tokenizer": Kind(
        lambda s: is_terramind_tokenizer(s.weights),
        lambda s, folder: ("terramind_tokenizer", convert_terramind_tokenizer(s.weights, folder)),
    ),
}
