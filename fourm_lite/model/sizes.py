"""The same weights for other grids and fewer modalities; positions are interpolated.

Only models whose config says so read other sizes (TerraMind); 4M's position tables fit one grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import build_empty
from fourm_lite.nn.posemb import resize_table

Grid = tuple[int, int]


def narrowed(
    model: FourM,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> FourM:
    """A model of some of the modalities, for other grids, on the same weights; in eval mode.

    Args:
        model: stays as it is
        inputs: what its encoder reads; all by default
        outputs: what its decoder predicts; all by default
        grids: rows and columns of tokens, by modality; those of the tables by default
    Raises:
        ConfigError: another grid for a model whose positions are stored for one
        UnknownNameError: a modality that the model does not have
    """
    config = model.config.only(inputs, outputs)
    changed = {
        name: grid
        for name, grid in (grids or {}).items()
        if model.modality(name).grid not in (None, grid)
    }
    if changed and config.positions != "interpolated":
        name, grid = next(iter(changed.items()))
        raise ConfigError(
            f"'{name}' has positions for a grid of {model.modality(name).grid}, got {grid}; this "
            "model reads one size, so resize the picture"
        )
    sized = replace(
        config,
        inputs=tuple(_sized(m, changed) for m in config.inputs),
        outputs=tuple(_sized(m, changed) for m in config.outputs),
    )
    found = build_empty(sized)
    held = model.state_dict()
    state = {name: held[name] for name in found.state_dict()}
    for name, grid in changed.items():
        for side in ("encoder", "decoder"):
            key = f"{side}_embeddings.{name}.pos_emb"
            if key in state:
                state[key] = resize_table(state[key], model.modality(name).grid or grid, grid)
    found.load_state_dict(state, strict=True, assign=True)
    found.tie()
    return found.eval()


def _sized(entry: Modality, grids: Mapping[str, Grid]) -> Modality:
    if entry.name not in grids:
        return entry
    rows, columns = grids[entry.name]
    return replace(entry, grid=(rows, columns), max_tokens=rows * columns)


def square(count: int, name: str) -> Grid:
    """The grid of so many tokens, of which nothing else says it.

    Raises:
        ShapeError: they are no square

    >>> square(49, "tok_lulc@224")
    (7, 7)
    """
    side = int(count**0.5)
    if side * side != count or count == 0:
        raise ShapeError(f"tokens of '{name}' form a square, got {count} of them")
    return side, side
