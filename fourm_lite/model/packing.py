"""Selecting tokens, written once: keep these, gather them, mark the padding.

Used by training, by every decoding scheme and by reranking. A row that has fewer tokens than the
others is padded with zero vectors whose `valid` is False: they are never attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Tokens of several modalities in one row each.

    Shapes:
        x: float[B, N, D] content; zero at padding
        pos: float[B, N, D] position + modality vector; zero at padding
        valid: bool[B, N]
        modality: int64[B, N], index into the model's modalities, also at padding
        where: int64[B, N], position inside its own modality
        beside: float[B, N, D], what is added to the encoder's output; None where there is nothing
    """

    x: Tensor
    pos: Tensor
    valid: Tensor
    modality: Tensor
    where: Tensor
    beside: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PackedTargets(Packed):
    """Decoder tokens with what they should become.

    Shapes:
        ids: int64[B, M]
        attend: bool[B, M, M], True where a row may see a column
    """

    ids: Tensor
    attend: Tensor


@dataclass(frozen=True)
class Part:
    """One modality before packing; shapes as in `Packed`, B x L, `keep` for `valid`."""

    x: Tensor
    pos: Tensor
    keep: Tensor
    index: int
    ids: Tensor | None = None
    groups: Tensor | None = None
    beside: Tensor | None = None


def take_first(keep: Tensor, k: int) -> Tensor:
    """The positions of the first k kept tokens, then of tokens that are not kept.

    Shapes:
        keep: bool[B, N]
        returns: int64[B, min(k, N)]

    >>> take_first(torch.tensor([[False, True, True]]), 3)
    tensor([[1, 2, 0]])
    """
    return torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :k]


def pack(parts: Sequence[Part], budget: int | None) -> Packed:
    """Concatenates modalities and keeps the first `budget` present tokens of each row.

    Without a budget every present token is kept, and nothing is padded beyond the longest row.
    """
    keep = torch.cat([p.keep for p in parts], dim=1)
    everything = _concatenate(parts, keep)
    if budget is None:
        if bool(keep.all()):
            return everything
        budget = int(keep.sum(dim=1).max())
    index = take_first(keep, budget)
    valid = keep.gather(1, index)
    present = valid[..., None].to(everything.x.dtype)
    return Packed(
        x=gather_rows(everything.x, index) * present,
        pos=gather_rows(everything.pos, index) * present,
        valid=valid,
        modality=everything.modality.gather(1, index),
        where=everything.where.gather(1, index),
        beside=_rows_or_none(everything.beside, index, present),
    )


def pack_targets(
    parts: Sequence[Part], budget: int | None, *, causal: bool, separate: bool
) -> PackedTargets:
    """Packs decoder tokens with their ids and who may see whom.

    A token sees the first c tokens, c being the sum of the groups up to it: all of its own group
    and all groups before. `causal` replaces this by the lower triangle; `separate` keeps modalities
    apart.
    """
    keep = torch.cat([p.keep for p in parts], dim=1)
    budget = int(keep.sum(dim=1).max()) if budget is None else budget
    index = take_first(keep, budget)
    valid = keep.gather(1, index)
    everything = _concatenate(parts, keep)
    present = valid[..., None].to(everything.x.dtype)
    ids = torch.cat([_ids(p) for p in parts], dim=1).gather(1, index)
    groups = torch.cat([_groups(p) for p in parts], dim=1).gather(1, index)
    modality = everything.modality.gather(1, index)
    return PackedTargets(
        x=gather_rows(everything.x, index) * present,
        pos=gather_rows(everything.pos, index) * present,
        valid=valid,
        modality=modality,
        where=everything.where.gather(1, index),
        ids=torch.where(valid, ids, 0),
        attend=target_attention(groups, modality, causal=causal, separate=separate),
    )


def target_attention(groups: Tensor, modality: Tensor, *, causal: bool, separate: bool) -> Tensor:
    """Who may see whom among decoder tokens: int[B, M] twice -> bool[B, M, M]."""
    m = groups.shape[1]
    column = torch.arange(m, device=groups.device)
    if causal:
        attend = (column[None, :] <= column[:, None]).expand(groups.shape[0], m, m)
    else:
        attend = column[None, None, :] < groups.cumsum(dim=1)[..., None]
    if separate:
        attend = attend & (modality[:, :, None] == modality[:, None, :])
    return attend


def pad_front(packed: Packed, tokens: Tensor) -> Packed:
    """The same with register tokens float[1, R, D] before all others; they are always valid."""
    b, r = packed.x.shape[0], tokens.shape[1]
    zeros = packed.where.new_zeros(b, r)
    return replace(
        packed,
        x=torch.cat([tokens.expand(b, -1, -1).to(packed.x.dtype), packed.x], dim=1),
        pos=torch.cat([torch.zeros_like(tokens).expand(b, -1, -1), packed.pos], dim=1),
        valid=torch.cat([packed.valid.new_ones(b, r), packed.valid], dim=1),
        modality=torch.cat([zeros - 1, packed.modality], dim=1),
        where=torch.cat([zeros, packed.where], dim=1),
        beside=None if packed.beside is None else F.pad(packed.beside, (0, 0, r, 0)),
    )


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of float[B, N, D] at int64[B, k]: float[B, k, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _rows_or_none(x: Tensor | None, index: Tensor, present: Tensor) -> Tensor | None:
    return None if x is None else gather_rows(x, index) * present


def _concatenate(parts: Sequence[Part], keep: Tensor) -> Packed:
    b = keep.shape[0]
    kinds = [torch.full_like(p.keep, p.index, dtype=torch.int64) for p in parts]
    places = [torch.arange(p.keep.shape[1], device=keep.device).expand(b, -1) for p in parts]
    if len(parts) == 1:
        return Packed(parts[0].x, parts[0].pos, keep, kinds[0], places[0], parts[0].beside)
    return Packed(
        x=torch.cat([p.x for p in parts], dim=1),
        pos=torch.cat([p.pos for p in parts], dim=1),
        valid=keep,
        modality=torch.cat(kinds, dim=1),
        where=torch.cat(places, dim=1),
        beside=_joined(parts),
    )


def _joined(parts: Sequence[Part]) -> Tensor | None:
    if all(p.beside is None for p in parts):
        return None
    return torch.cat([torch.zeros_like(p.x) if p.beside is None else p.beside for p in parts], 1)


def _ids(part: Part) -> Tensor:
    assert part.ids is not None
    return part.ids


def _groups(part: Part) -> Tensor:
    assert part.groups is not None
    return part.groups


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
