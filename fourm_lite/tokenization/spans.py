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

from fourm_lite.errors import ConfigError
from fourm_lite.tokenization.randomness import RandomSource

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
    """A masked sequence: what the encoder reads, and what the decoder must say."""

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
