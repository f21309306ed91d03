"""One sample's tokens laid out in an array: what is read, what is predicted, what is neither.

A masked sequence holds its input and its target in one array of 2 (max_tokens + 1) places: the
input at the front, the target from the input's budget on. These are single samples;
`data.masking` stacks them into a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourm_lite.errors import ShapeError
from fourm_lite.tokenization.spans import FIRST, Marks, Spans


@dataclass(frozen=True)
class MaskedTokens:
    """One modality of one sample.

    Shapes:
        value: int64[L] ids; pixels float32[C, H, W], features float32[L, E]
        inputs: bool[L], True where the encoder reads the token
        targets: bool[L], True where the decoder predicts it
        groups: int32[L], k at the first of k targets that see each other, 0 elsewhere
    """

    value: Tensor
    inputs: Tensor
    targets: Tensor
    groups: Tensor


def array_length(max_tokens: int) -> int:
    """Places for the input and the target of a sequence, with their sentinels."""
    return 2 * (max_tokens + 1)


def lay_out_spans(
    spans: Spans, *, max_tokens: int, input_budget: int | None, marks: Marks
) -> MaskedTokens:
    """A masked sequence in its array: input at the front, target from `input_budget` on.

    Raises:
        ShapeError: the spans are longer than `max_tokens` allows
    """
    length = array_length(max_tokens)
    start = max_tokens if input_budget is None else min(max(input_budget, 0), max_tokens)
    ends = len(spans.inputs), start + len(spans.targets)
    if ends[0] > start or ends[1] > length:
        raise ShapeError(
            f"{len(spans.inputs)} input and {len(spans.targets)} target tokens do not fit into an "
            f"input budget of {start} and {length} places; cut the sequence first"
        )
    # NumPy: on a hundred places each call of torch costs more than its work.
    value = np.full(length, marks.pad, dtype=np.int64)
    value[: ends[0]], value[start : ends[1]] = spans.inputs, spans.targets
    inputs, targets = np.zeros((2, length), dtype=np.bool_)
    inputs[: ends[0]], targets[start : ends[1]] = True, True
    groups = targets.astype(np.int32)
    return MaskedTokens(*map(torch.from_numpy, (value, inputs, targets, groups)))


def empty_text(length: int, marks: Marks) -> MaskedTokens:
    """A text still to be said: the encoder reads [S_1], the decoder starts there and ends at [S_2].

    Units:
        length: places, at least 2 (the two sentinels)
    """
    length = max(length, 2)
    value = torch.full((length,), marks.pad, dtype=torch.int64)
    value[:2] = marks.sentinel(FIRST)
    value[-1] = marks.sentinel(FIRST + 1)
    inputs = torch.arange(length) == 0
    return MaskedTokens(value, inputs, ~inputs, (~inputs).int())


def custom_text(ids: Sequence[int], target_length: int, marks: Marks) -> MaskedTokens:
    """A text that the encoder reads whole, sentinels and all, and room for its spans.

    The room starts with [S_1] and ends with [EOS]; the decoder predicts all of it.
    """
    room = torch.full((max(target_length, 2),), marks.pad, dtype=torch.int64)
    room[0], room[-1] = marks.sentinel(FIRST), marks.eos
    value = torch.cat([torch.tensor(list(ids), dtype=torch.int64), room])
    inputs = torch.arange(len(value)) < len(ids)
    nothing = torch.zeros(len(value), dtype=torch.int32)
    return MaskedTokens(value, inputs, ~inputs, nothing)


def given_grid(value: Tensor, length: int | None = None) -> MaskedTokens:
    """A token map, or pixels of `length` patches, that the encoder reads whole."""
    inputs = torch.ones(len(value) if length is None else length, dtype=torch.bool)
    return MaskedTokens(value, inputs, ~inputs, torch.zeros_like(inputs, dtype=torch.int32))


def wanted_grid(length: int) -> MaskedTokens:
    """A token map of which nothing is given and everything is wanted."""
    targets = torch.ones(length, dtype=torch.bool)
    return MaskedTokens(
        torch.zeros(length, dtype=torch.int64), ~targets, targets, one_group(targets)
    )


def one_group(targets: Tensor) -> Tensor:
    """How many targets there are, written at the first of them: they all see each other.

    Shapes:
        targets: bool[L]
        returns: int32[L]
    """
    wanted = targets.numpy()
    groups = np.zeros(len(wanted), dtype=np.int32)
    if count := np.count_nonzero(wanted):
        groups[wanted.argmax()] = count
    return torch.from_numpy(groups)


def given_text(chunks: Sequence[Sequence[int]], *, max_tokens: int, marks: Marks) -> MaskedTokens:
    """A whole text as input, laid out as in training (a lone [S_1] is its target)."""
    ids = tuple(token for chunk in chunks for token in chunk)
    spans = Spans(ids, (marks.sentinel(FIRST),))
    return lay_out_spans(spans, max_tokens=max_tokens, input_budget=None, marks=marks)


def wanted_text(chunks: Sequence[Sequence[int]], *, max_tokens: int, marks: Marks) -> MaskedTokens:
    """A whole text as target, laid out as in training; the encoder reads nothing of it."""
    ids = tuple(token for chunk in chunks for token in chunk)
    closing = (marks.sentinel(FIRST + 1),) if chunks else ()
    spans = Spans((), (marks.sentinel(FIRST), *ids, *closing))
    return lay_out_spans(spans, max_tokens=max_tokens, input_budget=None, marks=marks)
