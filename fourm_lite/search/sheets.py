"""Many texts in few rows, so that what they are said from is read once for all of them.

A decoder reads a candidate's side anew for every row. Texts of one candidate therefore stand side
by side in one row, and a mask keeps them apart; the numbers are those of a row a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PACKED = 256
"""Tokens of a row at most, but for one text that is longer."""


@dataclass(frozen=True)
class Sheet:
    """Texts side by side in rows; a token sees earlier tokens of its own text only.

    Shapes:
        ids, next: int64[R, L], a token and the one after it
        place: int64[R, L], where a token stands in its text
        text: int64[R, L], number of the text, counted over all rows; -1: padding
    """

    ids: Tensor
    next: Tensor
    place: Tensor
    text: Tensor
    count: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[Tensor]]) -> Sheet:
        """Some texts a row, each int64[length] with its two sentinels."""
        pad = torch.nn.utils.rnn.pad_sequence
        numbers = iter(range(sum(map(len, rows))))
        columns: list[list[Tensor]] = [[], [], [], []]
        for row in rows:
            parts = [
                (t[:-1], t[1:], torch.arange(len(t) - 1), torch.full((len(t) - 1,), next(numbers)))
                for t in row
            ]
            for column, cells in zip(columns, zip(*parts, strict=True), strict=True):
                column.append(torch.cat([cell.to(row[0].device) for cell in cells]))
        ids, after, place, text = columns
        return cls(
            pad(ids, batch_first=True), pad(after, batch_first=True),
            pad(place, batch_first=True), pad(text, batch_first=True, padding_value=-1),
            sum(map(len, rows)),
        )  # fmt: skip


def packed(
    lengths: Sequence[int], pairs: npt.NDArray[np.int64], most: int = PACKED
) -> list[npt.NDArray[np.int64]]:
    """Pair numbers, some a row: each row of one candidate and of `most` tokens, or of one text.

    Rows of alike length come together.
    """
    size = np.array(lengths)[pairs[:, 0]]
    rows: list[list[int]] = []
    room = 0
    order = np.lexsort((size, pairs[:, 1]))
    for place, pair in enumerate(order.tolist()):
        other = place == 0 or pairs[pair, 1] != pairs[order[place - 1], 1]
        if other or size[pair] > room:
            rows.append([])
            room = most
        rows[-1].append(pair)
        room -= int(size[pair])
    found = [np.array(row) for row in rows]
    return sorted(found, key=lambda row: int(size[row].sum()))
