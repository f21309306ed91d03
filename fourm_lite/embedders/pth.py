"""The weights inside a training script's `.pth` file.

It is opened with `weights_only=True`, so nothing in it is executed; the script's options, an
`argparse.Namespace` of plain values, may lie beside the weights. A script keeps its books there
too (optimizer, loss, state of generators), and sometimes several networks: one is taken, and
weights that would stay unread are an error.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, suggest
from fourm_lite.reading.regular import check_size, open_regular

Weights = dict[str, Tensor]
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the weights, averaged ones first
NESTS = (
    "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "params_ema",
    "state_dict", "model", "model_state_dict", "model_state", "module", "network", "net",
    "params", "weights", "teacher", "student",
)  # fmt: skip
BOOKS = re.compile(r"optim|loss|schedule|scaler|rng|sampler|metric|meter|callback", re.IGNORECASE)
WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.(?=.)")
TOP = "."
"""The name of what lies in no part."""
MAX_PARTS = 10_000
MOST_GROWTH = 16  # values that a file repeats may take so many times its bytes


@dataclass(frozen=True)
class FoundWeights:
    """One network's tensors by name.

    Units:
        left_out: tensors of the file that are not among them
        notes: sentences about what was chosen and changed
    """

    weights: Weights
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The tensors that lie together at one place of a file."""

    path: tuple[str, ...]
    tensors: Weights

    @property
    def name(self) -> str:
        return ".".join(self.path) or TOP

    @cached_property
    def is_network(self) -> bool:
        """Whether there are matrices: losses, counts and states of generators are none."""
        return not any(map(BOOKS.search, self.path)) and any(
            value.is_floating_point() and value.ndim > 1 and not BOOKS.search(key)
            for key, value in self.tensors.items()
        )

    @cached_property
    def shapes(self) -> Counter[tuple[int, ...]]:
        return Counter(tuple(t.shape) for t in self.tensors.values())

    def rank(self, start: int) -> tuple[int, ...]:
        """Which of several networks comes first, by the names from `start` on."""
        return tuple(NESTS.index(n) if n in NESTS else len(NESTS) for n in self.path[start:])


def read_pth(path: Path, *, part: str | None = None) -> FoundWeights:
    """The weights of a `.pth` file by name, unwrapped from the script's own dictionary.

    `part` names the place in the file to read, such as "state_dict_ema" or "nets.generator".

    Raises:
        CheckpointError: no such file or part, the file is damaged, code would have to run, or it
            holds no weights or several networks
    """
    parts = list(_parts(load_plain(path)))
    if not parts:
        raise CheckpointError(f"'{path}' holds no dictionary of tensors")
    chosen = _named(parts, part, path) if part is not None else _chosen(parts, path)
    others = [p for p in parts if p is not chosen]
    copies = [p.name for p in others if p.is_network and p.shapes == chosen.shapes]
    if part is None:
        _check_unread(chosen, [p for p in others if p.shapes != chosen.shapes], path)
    weights, notes = _unwrapped(chosen.tensors, path)
    _check_bytes(weights, path)
    if copies:
        same = "holds tensors of the same shapes, left out"
        notes = (f"taken from '{chosen.name}'; {_listed(copies)} {same}", *notes)
    left_out = tuple(".".join((*p.path, key)) for p in others for key in p.tensors)
    return FoundWeights(weights, left_out, notes)


def load_plain(path: Path, *, arrays: bool = False) -> Any:
    """What a pickled file holds, where that is tensors, plain values and a script's options.

    `arrays`: NumPy arrays and numbers are let in too, by name; they are data as tensors are.

    Raises:
        CheckpointError: no such file, it is damaged, or code would have to run
    """
    # A Namespace only keeps what it is given; what lies in it is judged by the same rules
    safe: list[Any] = [argparse.Namespace, *(_numpy_globals() if arrays else ())]
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise CheckpointError(f"expected a .pth, .pt or .bin file, '{path}' {what}")
    check_size(path)
    try:
        _check_inflated(path)
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes ask for
        if isinstance(error, pickle.UnpicklingError) and _is_saved(path):
            raise CheckpointError(
                f"'{path}' holds more than tensors and is not opened, since that could run code: "
                f"{_first_line(error)} Save its state_dict alone where you trust it"
            ) from error
        raise CheckpointError(
            f"'{path}' cannot be read as a .pth, .pt or .bin file: it is another kind of file, or "
            "damaged. Name the file of weights, or fetch it again"
        ) from error


def _is_saved(path: Path) -> bool:
    """Whether a file begins as torch's own do: an archive, or a pickle."""
    with open_regular(path) as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def _numpy_globals() -> list[Any]:
    """What rebuilds plain arrays; `numpy.core` is the name that NumPy 1 wrote."""
    from numpy._core import multiarray

    kinds = ("Float16", "Float32", "Float64", "Int8", "Int16", "Int32", "Int64", "UInt8", "Bool")
    types = [getattr(np.dtypes, f"{kind}DType") for kind in kinds]
    renamed = [
        (getattr(multiarray, name), f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ]
    return [np.ndarray, np.dtype, *types, *renamed]


def _check_inflated(path: Path) -> None:
    """Refuses archives that grow when they are read: torch stores tensors as they are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    _check_growth(size, path)


def _check_bytes(weights: Weights, path: Path) -> None:
    _check_growth(sum(t.numel() * t.element_size() for t in weights.values()), path)


def _check_growth(size: int, path: Path) -> None:
    total = path.stat().st_size
    if size > MOST_GROWTH * total + (1 << 20):
        raise CheckpointError(
            f"'{path}' has {total} bytes and would take {size} when it is read; it is damaged, or "
            "its tensors repeat few values"
        )


def _parts(found: Any) -> Iterator[_Part]:
    """Every place of a file that holds tensors, from the top down, each visited once."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), found)]
    seen: set[int] = set()
    for path, value in queue:  # grows while it is walked
        if id(value) in seen or not _is_container(value):
            continue
        seen.add(id(value))
        value = value if isinstance(value, Mapping) else dict(enumerate(value))
        if "param_groups" in value:
            continue  # an optimizer
        tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
        if tensors:
            yield _Part(path, tensors)
        if len(queue) < MAX_PARTS:
            queue += [((*path, str(k)), v) for k, v in value.items() if _is_container(v)]


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _named(parts: list[_Part], part: str, path: Path) -> _Part:
    found = next((p for p in parts if p.name == part), None)
    if found is None:
        known = [p.name for p in parts]
        raise CheckpointError(
            f"'{path}' holds no tensors at '{part}', they lie at {_listed(known)}."
            f"{suggest(part, known)}"
        )
    return found


def _chosen(parts: list[_Part], path: Path) -> _Part:
    """The network of a file: the only one there is, at a usual name, or at the top."""
    networks = [p for p in parts if p.is_network] or parts
    if len(networks) == 1:
        return networks[0]
    start = _num_common([p.path for p in networks])
    usual = [p for p in networks if p.path[start:] and p.path[start] in NESTS]
    if usual:
        return min(usual, key=lambda p: p.rank(start))
    top = [p for p in networks if len(p.path) == start]
    if not top:
        raise CheckpointError(
            f"'{path}' holds tensors at {_listed([p.name for p in networks])}; say which with "
            f"--part, such as --part {networks[0].name}"
        )
    return top[0]


def _num_common(paths: list[tuple[str, ...]]) -> int:
    """How many names all paths begin with."""
    columns = zip(*paths, strict=False)
    return sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, columns))


def _check_unread(chosen: _Part, others: list[_Part], path: Path) -> None:
    unread = [p.name for p in others if p.is_network]
    if unread:
        raise CheckpointError(
            f"'{path}' holds weights at {_listed(unread)} beside those at "
            f"'{chosen.name}', which would stay unread; say which are wanted with --part, such as "
            f"--part {chosen.name}"
        )


def _unwrapped(tensors: Weights, path: Path) -> tuple[Weights, tuple[str, ...]]:
    """The tensors under the names of the network itself, without what wrappers put before them."""
    taken: dict[str, None] = {}
    weights: Weights = {}
    for key, value in tensors.items():
        name = _without_wrappers(key, taken)
        if name in weights:
            raise CheckpointError(f"'{path}' holds {name[:200]!r} twice, wrapped and plain")
        weights[name] = value
    with_backbone = [name for name in weights if name.startswith("backbone.")]
    notes = [f"{_listed(list(taken))} was taken off the names"] if taken else []
    if len(with_backbone) == len(weights):
        weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
        notes.append("'backbone.' was taken off the names")
    elif with_backbone:
        count = f"{len(with_backbone)} of {len(weights)}"
        notes.append(f"{count} names begin with 'backbone.', which stays")
    return weights, tuple(notes)


def _without_wrappers(key: str, taken: dict[str, None]) -> str:
    while True:
        shorter = WRAPPERS.sub(r"\1", key).removeprefix("module.")
        if shorter in (key, ""):
            return key
        taken.update(dict.fromkeys(m[0].lstrip(".") for m in WRAPPERS.finditer(key)))
        if WRAPPERS.sub(r"\1", key) != shorter:
            taken["module."] = None
        key = shorter


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
