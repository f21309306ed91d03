"""A teacher's feature map as a further goal of the encoder: dense, so a photo teaches much.

Heads that only training has: each says the teacher's features at a cell of its map from the mean
of the encoder's patch tokens there. Cells of which no patch was given are not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import ConfigError
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import Encoded, FourM, Prediction

_HEADS = "distill_heads"


class Guess(NamedTuple):
    """What a head says.

    Shapes:
        features: float[B, cells, C]; present: bool[B, cells], where patches were given
    """

    features: Tensor
    present: Tensor


class DistilledFourM(FourM):
    """A FourM with heads for teachers' feature maps; `save` writes it without them.

    Units:
        channels: name of a teacher's map -> its channels
    Raises:
        ConfigError: the model has no input of pixels, or several
    """

    def __init__(self, config: FourMConfig, channels: Mapping[str, int]) -> None:
        super().__init__(config)
        found = [m for m in config.inputs if m.kind == "pixels"]
        if len(found) != 1 or found[0].grid is None:
            raise ConfigError(
                "feature maps are distilled into the one input of pixels; this model has "
                f"{[m.name for m in found]}"
            )
        self.pixels, self._side = found[0].name, found[0].grid
        self.distill_heads = nn.ModuleDict(
            {n: nn.Linear(config.dim, c) for n, c in channels.items()}
        )

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
        means, present = cell_means(encoded, self.names.index(self.pixels), self._side, grid)
        return Guess(self.distill_heads[name](means), present)

    def saved_state(self) -> dict[str, Tensor]:
        """The model's own tensors."""
        state = super().saved_state()
        return {n: v for n, v in state.items() if not n.startswith(f"{_HEADS}.")}


def cell_means(
    encoded: Encoded, modality: int, patches: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The mean of a modality's tokens in each cell of a coarser grid.

    Shapes:
        patches, grid: rows and columns of the tokens' own grid and of the cells
        returns: float[B, cells, D], zero where nothing was given, and bool[B, cells]
    """
    packed = encoded.packed
    row, column = packed.where // patches[1], packed.where % patches[1]
    cell = row * grid[0] // patches[0] * grid[1] + column * grid[1] // patches[1]
    used = (packed.modality == modality) & packed.valid
    cells = grid[0] * grid[1]
    one = F.one_hot(torch.where(used, cell, 0), cells) * used[..., None]
    share = one.to(encoded.output.dtype).transpose(1, 2)
    count = share.sum(dim=2, keepdim=True)
    return (share @ encoded.output) / count.clamp(min=1), count[..., 0] > 0


def unexplained(guess: Guess, features: Tensor) -> Tensor:
    """The share of the features' variance in the batch that a guess leaves: 0 is perfect.

    Shapes:
        features: float[B, C, h, w], the teacher's
    """
    wanted = features.flatten(2).transpose(1, 2)[guess.present]
    left = (guess.features.float()[guess.present] - wanted).square().sum()
    return left / (wanted - wanted.mean(dim=0)).square().sum().clamp(min=1e-6)
