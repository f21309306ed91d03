"""Span masking: runs of hidden tokens become sentinels, and generated runs are put back.

A sequence is a list of *chunks* (single tokens of a caption, type/value pairs of metadata) of which
each is kept or hidden as a whole. The k-th run of hidden chunks becomes the sentinel [S_k] in the
encoder's input; the decoder's target is [S_1] run1 [S_2] run2 ... [S_{n+1}].

Source:
    T5 (Raffel et al. 2020), section 3.1.4; 4M (Mizrahi et al. 2023), section 2.2
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.tokenization.vq.randomness import RandomSource

KeepScheme = Literal["random", "all", "binary"]
"""How large a part is kept: uniform in 0..1, everything, or everything or nothing."""

KEEP_DECAY = 0.9  # the keep probability shrinks by this until the input fits its budget
FIRST = 1  # [S_0] exists, but spans are counted from [S_1]


@dataclass(frozen=True)
class Marks:
    """The ids of a text vocabulary that masking and decoding need.

    `sentinels[k]` is the id of [S_k], `amounts[n]` that of the number word `v0=n`.
    """

    pad: int
    eos: int
    sentinels: tuple[int, ...]
    amounts: tuple[int, ...] = ()

    def sentinel(self, k: int) -> int:
        """The id of [S_k].

        Raises:
            ConfigError: the vocabulary has fewer sentinels
        """
        if k >= len(self.sentinels):
            raise ConfigError(
                f"this text needs the sentinel [S_{k}], the vocabulary ends at "
                f"[S_{len(self.sentinels) - 1}]; train it with more sentinels or cut the text"
            )
        return self.sentinels[k]


@dataclass(frozen=True)
class Spans:
    """A masked sequence: what the encoder reads, and what the decoder predicts."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def mask_spans(ids: Sequence[int], keep: Sequence[bool], marks: Marks) -> Spans:
    """A sequence with its hidden tokens replaced, run by run.

    Shapes:
        ids, keep: of one length; keep is True where a token stays in the input
    """
    return mask_chunk_spans([[i] for i in ids], keep, marks)


def mask_chunk_spans(chunks: Sequence[Sequence[int]], keep: Sequence[bool], marks: Marks) -> Spans:
    """Like `mask_spans`, with chunks that are kept or hidden as a whole."""
    inputs: list[int] = []
    targets: list[int] = [marks.sentinel(FIRST)]
    runs, in_run = 0, False
    for chunk, kept in zip(chunks, keep, strict=True):
        if kept:
            inputs.extend(chunk)
        else:
            if not in_run:
                runs += 1
                inputs.append(marks.sentinel(runs))
            targets.extend(chunk)
        if in_run and kept:
            # The run has ended: its closing sentinel opens the next run.
            targets.append(marks.sentinel(runs + 1))
        in_run = not kept
    if in_run:
        targets.append(marks.sentinel(runs + 1))
    return Spans(tuple(inputs), tuple(targets))


def split_spans(ids: Iterable[int], sentinels: Collection[int]) -> dict[int | None, list[int]]:
    """The tokens after each sentinel; those before the first one stand under `None`.

    A sentinel that comes twice collects both runs; one without tokens is absent.
    """
    spans: dict[int | None, list[int]] = {}
    current: int | None = None
    for token in ids:
        if token in sentinels:
            current = token
        else:
            spans.setdefault(current, []).append(token)
    return spans


def merge_spans(
    inputs: Iterable[int], targets: Iterable[int], sentinels: Collection[int]
) -> list[int]:
    """The whole sequence: each sentinel of the input gives way to the tokens generated for it.

    Sentinels for which nothing was generated disappear; runs that nobody asked for are dropped.
    """
    spans = split_spans(targets, sentinels)
    merged: list[int] = []
    for token in inputs:
        if token in sentinels:
            merged.extend(spans.get(token, ()))
        else:
            merged.append(token)
    return merged


def truncate_chunks(chunks: Iterable[Sequence[int]], max_tokens: int) -> list[Sequence[int]]:
    """The leading chunks that fit, none of them cut."""
    kept: list[Sequence[int]] = []
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_tokens:
            break
        kept.append(chunk)
    return kept


def draw_spans(
    chunks: Sequence[Sequence[int]],
    *,
    budget: int | None,
    marks: Marks,
    source: RandomSource,
    keep: KeepScheme = "random",
) -> Spans:
    """A random masking whose input fits the budget; `None` sets no limit.

    The probability to keep a chunk is drawn first. While the input is too long, the probability
    shrinks by `KEEP_DECAY` and all chunks are drawn anew. A budget of 0 hides everything, and the
    encoder does not see a sentinel either.
    """
    probability = _keep_probability(keep, source)
    if budget is not None and budget <= 0:
        hidden = mask_chunk_spans(chunks, [False] * len(chunks), marks)
        return Spans((), hidden.targets)
    lengths = [len(chunk) for chunk in chunks]
    while True:
        kept = (source.uniforms(len(chunks)) < probability).tolist()
        if budget is None or _input_length(lengths, kept) <= budget:
            return mask_chunk_spans(chunks, kept, marks)
        probability *= KEEP_DECAY


def _input_length(lengths: Sequence[int], keep: Sequence[bool]) -> int:
    """Tokens of the input of `mask_chunk_spans`: what is kept, and a sentinel for each run."""
    total, before = 0, True
    for length, kept in zip(lengths, keep, strict=True):
        total += length if kept else before
        before = kept
    return total


def _keep_probability(keep: KeepScheme, source: RandomSource) -> float:
    if keep == "random":
        return source.uniform()
    if keep == "binary":
        return float(source.coin())
    if keep == "all":
        return 1.0
    raise ConfigError(f"keep is 'random', 'all' or 'binary', got {keep!r}")


def cut_targets(
    targets: Sequence[int], budget: int | None, *, marks: Marks, source: RandomSource
) -> tuple[int, ...]:
    """The part of a target that fits its budget, from a random sentinel on; `None` sets no limit.

    The last sentinel opens nothing, so a cut never starts there.
    """
    if budget is None or len(targets) <= budget:
        return tuple(targets)
    if budget <= 0:
        return ()
    sentinels = set(marks.sentinels)
    starts = [i for i, token in enumerate(targets) if token in sentinels][:-1]
    start = starts[source.below(len(starts))] if starts else 0
    return tuple(targets[start : start + budget])


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
    """A text to be written: the encoder reads [S_1], the decoder starts there and ends at [S_2].

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
