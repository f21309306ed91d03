"""A teacher's feature maps as further goals of the encoder: dense, so a photo teaches much.

Heads that only training has: each says the teacher's features at a cell of its map from the mean
of the encoder's patch tokens there. Cells of which no patch was given are not asked for. A map from
the middle of the teacher can be asked of a block in the middle of the encoder: how the teacher sees
texture and parts is the same in every photo, so few photos teach it.

Source:
    FitNets: hints for thin deep nets (Romero et al. 2015)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import ConfigError
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import Encoded, FourM, Prediction
from fourm_lite.model.packing import Packed

_HEADS = "distill_heads"


class Guess(NamedTuple):
    """A head's prediction.

    Shapes:
        features: float[B, cells, C]; present: bool[B, cells], where patches were given
    """

    features: Tensor
    present: Tensor


class DistilledFourM(FourM):
    """A FourM with heads for teachers' feature maps; `save` writes it without them.

    Units:
        shapes: name of a teacher's map -> [C, h, w]; of a vector -> [C], which the mean of all
            patches says
        after: name of a map -> the encoder block that its head reads, from 1; without an entry it
            reads the encoder's output
    Raises:
        ConfigError: the model has no input of pixels, or several; it has no such block; a map is
            finer than the patches and no multiple of them
    """

    def __init__(
        self,
        config: FourMConfig,
        shapes: Mapping[str, Sequence[int]],
        after: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(config)
        found = [m for m in config.inputs if m.kind == "pixels"]
        if len(found) != 1 or found[0].grid is None:
            raise ConfigError(
                "feature maps are distilled into the one input of pixels; this model has "
                f"{[m.name for m in found]}"
            )
        self.pixels, self._side = found[0].name, found[0].grid
        self._after = dict(after or {})
        for name, number in self._after.items():
            if not 1 <= number <= config.encoder_depth:
                raise ConfigError(
                    f"'{name}' is asked of block {number}; the encoder has blocks 1 to "
                    f"{config.encoder_depth}"
                )
        self.inner_blocks = frozenset(self._after.values())
        self.distill_heads = nn.ModuleDict(
            {n: nn.Linear(config.dim, self._width(n, s)) for n, s in shapes.items()}
        )

    def _width(self, name: str, shape: Sequence[int]) -> int:
        """How many features a head predicts of a cell: those of all cells of a finer map in it."""
        channels, *grid = shape
        pairs = list(zip(grid, self._side, strict=False))  # none, of a vector
        fine = {max(1, n // side) for n, side in pairs} or {1}
        if len(fine) > 1 or any(n > side and n % side for n, side in pairs):
            raise ConfigError(
                f"the map '{name}' of {grid} cells is finer than the {list(self._side)} patches, "
                "and no multiple of them"
            )
        return int(channels) * fine.pop() ** 2

    def forward(  # type: ignore[override]
        self,
        batch: TokenBatch,
        input_budget: int,
        target_budget: int,
        *,
        order: Sequence[str] | None = None,
        maps: Mapping[str, tuple[int, int]] | None = None,
    ) -> tuple[dict[str, Prediction], dict[str, Guess]]:
        """Predictions as `FourM.forward` gives them, and the heads' guesses for the named maps.

        Units:
            maps: name of a head -> rows and columns of its teacher's map
        """
        encoded = self.encode(batch, input_budget)
        guesses = {name: self._guess(name, encoded, grid) for name, grid in (maps or {}).items()}
        return self.predictions(encoded, batch, target_budget, order), guesses

    def _guess(self, name: str, encoded: Encoded, grid: tuple[int, int]) -> Guess:
        means, present = self.cells(name, encoded, grid)
        return Guess(self.distill_heads[name](means), present)

    def cells(self, name: str, encoded: Encoded, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What a head reads.

        Units:
            grid: rows and columns of the teacher's map; where it is finer, the patches' own count
        Shapes:
            returns: float[B, cells, D] and bool[B, cells], as `cell_means`
        """
        tokens = encoded.output
        if name in self._after:
            inner = encoded.inner[self._after[name]]
            tokens = F.layer_norm(inner, inner.shape[-1:])
        cells = (min(grid[0], self._side[0]), min(grid[1], self._side[1]))
        index = self.names.index(self.pixels)
        return cell_means(tokens, encoded.packed, index, self._side, cells)

    def saved_state(self) -> dict[str, Tensor]:
        """The model's own tensors."""
        state = super().saved_state()
        return {n: v for n, v in state.items() if not n.startswith(f"{_HEADS}.")}


def cell_means(
    tokens: Tensor, packed: Packed, modality: int, patches: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The mean of a modality's tokens in each cell of a coarser grid.

    Shapes:
        tokens: float[B, N, D], what the encoder made of `packed`
        patches, grid: rows and columns of the tokens' own grid and of the cells
        returns: float[B, cells, D], zero where nothing was given, and bool[B, cells]
    """
    row, column = packed.where // patches[1], packed.where % patches[1]
    cell = row * grid[0] // patches[0] * grid[1] + column * grid[1] // patches[1]
    used = (packed.modality == modality) & packed.valid
    cells = grid[0] * grid[1]
    one = F.one_hot(torch.where(used, cell, 0), cells) * used[..., None]
    share = one.to(tokens.dtype).transpose(1, 2)
    count = share.sum(dim=2, keepdim=True)
    return (share @ tokens) / count.clamp(min=1), count[..., 0] > 0


def unexplained(guess: Guess, features: Tensor) -> Tensor:
    """The share of the features' variance in the batch that a guess leaves: 0 is perfect.

    Shapes:
        features: float[B, C, h, w], the teacher's, or float[B, C]
    """
    wanted = as_cells(features, guess.present.shape[1])[guess.present]
    left = (guess.features.float()[guess.present] - wanted).square().sum()
    return left / (wanted - wanted.mean(dim=0)).square().sum().clamp(min=1e-6)


def as_cells(features: Tensor, cells: int) -> Tensor:
    """A map cell by cell; what lies in a cell of the patches side by side, where a map is finer.

    Shapes:
        features: float[B, C, h, w] or float[B, C]
        returns: float[B, cells, C * h * w / cells]
    """
    if features.ndim == 2:
        return features[:, None]
    fine = math.isqrt(features.shape[2] * features.shape[3] // cells)
    return F.pixel_unshuffle(features, fine).flatten(2).transpose(1, 2)


def grid_of(features: Tensor) -> tuple[int, int]:
    """Rows and columns of a teacher's map; a vector is a map of one cell."""
    return (features.shape[2], features.shape[3]) if features.ndim == 4 else (1, 1)
