"""A modality's entry read off its tensors, for names that no table knows.

Forks of the 4M format (AION's astronomy, for one) bring modalities of their own, and their configs
give names only. The shapes tell the kind; the position table tells a sequence from a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError
from fourm_lite.io.keys import SEQUENCE_ROWS
from fourm_lite.nn.posemb import sincos_1d, sincos_2d

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint

SIDES = {"in": "encoder_embeddings", "out": "decoder_embeddings"}
MAX_TRIALS = 32


def infer_modality(
    name: str, checkpoint: Checkpoint, *, image_size: int, patch_size: int
) -> dict[str, Any] | None:
    """The entry of a modality as a dict; None when the file holds no tensor of it.

    Sizes of images come from the name ("x@448") or the model; a sequence may use all its positions.

    Raises:
        CheckpointError: the tensors do not tell what it is
    """
    directions = [side for side, table in SIDES.items() if _has(checkpoint, f"{table}.{name}.")]
    if not directions:
        return None
    prefix = f"{SIDES[directions[0]]}.{name}"
    shapes = {
        key.removeprefix(prefix + "."): info.shape
        for key, info in checkpoint.tensors.items()
        if key.startswith(prefix + ".")
    }
    entry: dict[str, Any] = {"name": name, "directions": directions}
    if "proj.weight" in shapes:
        return entry | _pixels(prefix, shapes, _size_of(name, image_size), patch_size)
    if "emb_proj.weight" in shapes:
        return entry | _features(prefix, shapes)
    if "token_emb.weight" in shapes:
        return entry | _tokens(prefix, shapes, checkpoint)
    raise CheckpointError(
        f"cannot tell what the modality {name[:80]!r} is: expected token_emb.weight, "
        f"proj.weight or emb_proj.weight under {prefix[:120]}, found {sorted(shapes)[:10]}; "
        "register it with fourm_lite.register(Modality(...))"
    )


def _has(checkpoint: Checkpoint, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in checkpoint.tensors)


def _size_of(name: str, image_size: int) -> int:
    digits = name.rpartition("@")[2] if "@" in name else ""
    return int(digits) if digits.isdecimal() and len(digits) <= 6 else image_size


def _rows(prefix: str, shapes: dict[str, tuple[int, ...]]) -> int:
    shape = shapes.get("pos_emb", ())
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 1:
        raise CheckpointError(
            f"'{prefix}.pos_emb' should have shape [1, positions, dim], got {list(shape)}"
        )
    return shape[1]


def _matrix(prefix: str, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    shape = shapes[name]
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"'{prefix}.{name}' should be a matrix, got shape {list(shape)}")
    return shape[0], shape[1]


def _pixels(
    prefix: str, shapes: dict[str, tuple[int, ...]], image_size: int, patch_size: int
) -> dict[str, Any]:
    rows, values = _rows(prefix, shapes), _matrix(prefix, "proj.weight", shapes)[1]
    side = math.isqrt(rows)
    for patch in (patch_size, image_size // side):
        if side * side == rows and patch > 0 and values % (patch * patch) == 0:
            return {
                "kind": "pixels",
                "channels": values // (patch * patch),
                "patch_size": patch,
                "image_size": side * patch,
                "grid": [side, side],
                "max_tokens": rows,
            }
    raise CheckpointError(
        f"cannot tell the patches of '{prefix}': {values} values a patch, {rows} positions; "
        "register the modality with fourm_lite.register(Modality(...))"
    )


def _features(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    channels = _matrix(prefix, "emb_proj.weight", shapes)[1]
    return {"kind": "features", "channels": channels, "max_tokens": _rows(prefix, shapes)}


def _tokens(
    prefix: str, shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> dict[str, Any]:
    rows, vocab = _rows(prefix, shapes), _matrix(prefix, "token_emb.weight", shapes)[0]
    entry = {"vocab_size": vocab, "max_tokens": rows}
    key = f"{prefix}.pos_emb"
    table = checkpoint.load([key], dtype=torch.float32)[key]
    if rows == SEQUENCE_ROWS and _equals(table, sincos_1d):
        return {"kind": "sequence", **entry}
    for grid in _grids(rows):
        if _equals(table, lambda _, dim, grid=grid: _grid_table(grid, dim)):  # type: ignore[misc]
            return {"kind": "grid", "grid": list(grid), **entry}
    return {"kind": "grid", "grid": list(next(_grids(rows))), "pos_embed": "learned", **entry}


def _grids(rows: int) -> Iterator[tuple[int, int]]:
    """Grids of so many cells: the square, then a single row, then the others."""
    side = math.isqrt(rows)
    if side * side == rows:
        yield side, side
    yield 1, rows
    trials = (h for h in range(2, rows) if rows % h == 0 and h * h != rows)
    for _, height in zip(range(MAX_TRIALS), trials, strict=False):
        yield height, rows // height


def _grid_table(grid: tuple[int, int], dim: int) -> Tensor:
    # as fourm_lite.model builds it: a single row of cells is a line
    return sincos_1d(grid[1], dim) if grid[0] == 1 and grid[1] > 1 else sincos_2d(*grid, dim)


def _equals(table: Tensor, build: Callable[[int, int], Tensor]) -> bool:
    rows, dim = table.shape[1:]
    if dim % 4:
        return False
    return torch.allclose(table, build(rows, dim), rtol=0.0, atol=1e-2)  # half precision fits
