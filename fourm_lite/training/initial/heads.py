"""Heads of `DistilledFourM` that begin as regressions: from noise they learn for hundreds of steps.

Until a head has learnt, its gradient leads the encoder astray.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourm_lite.data.linear import solve_ridge
from fourm_lite.data.loader import MaskedStream
from fourm_lite.training.distill import DistilledFourM, as_cells, grid_of
from fourm_lite.training.initial.start import first_batches


class _Sums:
    """Second moments of a head's inputs, with a one at their end, and of what it should say."""

    def __init__(self, head: nn.Linear) -> None:
        width = head.in_features + 1
        self.inner = torch.zeros(width, width, dtype=torch.float64)
        self.outer = torch.zeros(width, head.out_features, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        x = torch.cat([x.float(), x.new_ones(len(x), 1)], dim=1)
        self.inner += (x.T @ x).double()
        self.outer += (x.T @ y.float()).double()

    def solve(self, head: nn.Linear) -> None:
        """Ridge regression; the penalty weighs as much as one row for each input."""
        rows, width = self.inner[-1, -1], len(self.inner) - 1
        if not rows:
            return
        penalty = torch.full((width + 1,), float(self.inner.diagonal()[:-1].mean() * width / rows))
        penalty[-1] = 0.0
        found = solve_ridge(self.inner, self.outer, penalty.double())
        head.weight.copy_(found[:-1].T)
        head.bias.copy_(found[-1])


@torch.no_grad()
def start_heads(model: DistilledFourM, stream: MaskedStream, batches: int) -> None:
    """Solves the heads on the stream's first batches that give pixels and have maps.

    Units:
        batches: how many; where the stream has no such component, nothing is done
    """
    heads: dict[str, nn.Linear] = dict(model.distill_heads.items())  # type: ignore[arg-type]
    fits = [
        model.pixels in c.inputs and bool(heads.keys() & {*c.labels}) for c in stream.components
    ]
    if not any(fits):
        return
    sums = {name: _Sums(head) for name, head in heads.items()}
    training = model.training
    model.eval()
    for batch in first_batches(stream, fits, batches):
        encoded = model.encode(batch.batch, batch.input_budget)
        for name in heads.keys() & batch.labels.keys():
            said = batch.labels[name]
            means, present = model.cells(name, encoded, grid_of(said))
            sums[name].add(means[present], as_cells(said, present.shape[1])[present])
    for name, head in heads.items():
        sums[name].solve(head)
    model.train(training)
