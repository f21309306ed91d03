"""The decoding schemes: MaskGIT and ROAR for grids, token by token for sequences.

MaskGIT and ROAR decode a set of undecided positions from mask tokens and write some of them.
MaskGIT offers all undecided positions and keeps the most confident; ROAR draws the positions first
and keeps them all.

Of a sequence the decoder reads only the newest token; the keys and values of earlier ones are kept,
the context's are computed once. A row that has decoded its end token leaves the batch. What was
decoded is merged into the sequence, sentinel by sentinel, so that gaps in the middle of a text are
filled as well as its end.

Source:
    MaskGIT (Chang et al. 2022); ROAR is 4M's random-order autoregression (Mizrahi et al. 2023)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.model.fourm import FourM
from fourm_lite.model.packing import take_first
from fourm_lite.nn.attention import KVCache, blocked
from fourm_lite.nn.blocks import BlockCache, Context
from fourm_lite.sampling.logits import at_median, own_confidence
from fourm_lite.sampling.passes import Joined
from fourm_lite.sampling.plan import Step
from fourm_lite.sampling.state import Job, StepResult, Written
from fourm_lite.tokenization.words.spans import Marks, merge_spans


def decode_positions(
    model: FourM, name: str, positions: Tensor, valid: Tensor, context: Context
) -> Tensor:
    """Decoder outputs at mask tokens.

    Shapes:
        positions: int64[B, m]; valid: bool[B, m], False where a row is padded
        returns: float[B, m, D]
    """
    embedding = model.target(name)
    y = model.mask_token + embedding.at(positions)
    bias = None
    if not bool(valid.all()):
        y = y * valid[..., None].to(y.dtype)
        bias = blocked(valid, y.dtype)[:, None, None, :]
    return model.run_decoder(y, context, bias)


def maskgit(job: Job) -> Written:
    """Decodes all undecided positions and writes the most confident ones."""
    targets = job.tokens.targets
    positions = take_first(targets, int(targets.sum(dim=1).max()))
    valid = targets.gather(1, positions)
    logits = _logits(job, positions, valid)
    drawn = job.randomness.draw(logits, job.step, valid)
    confidence = drawn.confidence.masked_fill(~valid, -1.0)
    k = min(_count(job), positions.shape[1])
    best = confidence.topk(k, dim=1).indices
    return _write(job, positions, logits, drawn.ids, confidence, best, valid)


def roar(job: Job) -> Written:
    """Draws undecided positions at random, decodes them and writes them all."""
    targets = job.tokens.targets
    order = job.randomness.orders(*targets.shape).to(targets.device)
    k = min(_count(job), int(targets.sum(dim=1).max()))
    positions = (order + (~targets) * 2.0).argsort(dim=1, stable=True)[:, :k]
    valid = targets.gather(1, positions)
    logits = _logits(job, positions, valid)
    drawn = job.randomness.draw(logits, job.step, valid)
    every = torch.arange(k, device=targets.device).expand(targets.shape[0], -1)
    return _write(job, positions, logits, drawn.ids, drawn.confidence, every, valid)


def _logits(job: Job, positions: Tensor, valid: Tensor) -> Tensor:
    context = job.context.unpadded() if isinstance(job.context, Joined) else job.context
    p = len(job.passes)
    y = decode_positions(job.model, job.name, positions.repeat(p, 1), valid.repeat(p, 1), context)
    return job.guided(y)


def _count(job: Job) -> int:
    count = job.step.num_tokens
    return job.tokens.length if count is None else max(int(count), 0)


def _write(
    job: Job,
    candidates: Tensor,
    logits: Tensor,
    ids: Tensor,
    confidence: Tensor,
    chosen: Tensor,
    valid: Tensor,
) -> Written:
    positions, new = candidates.gather(1, chosen), ids.gather(1, chosen)
    wanted = valid.gather(1, chosen)
    return Written(
        tokens=job.tokens.reveal(positions, new, wanted),
        positions=positions,
        ids=new.masked_fill(~wanted, -1),
        confidence=confidence.gather(1, chosen),
        candidates=candidates,
        logits=logits,
    )


@dataclass(frozen=True)
class Ends:
    """Where each row of a sequence target starts and ends; all int64[B].

    `start` is the first id that the decoder reads, `end` the id that ends the row, `limit` the most
    tokens that follow.
    """

    start: Tensor
    end: Tensor
    limit: Tensor

    @classmethod
    def of(cls, tokens: Tokens) -> Ends:
        """Read off the target: its first id, its last id, its length."""
        limit = tokens.targets.sum(dim=1)
        first = tokens.targets.to(torch.uint8).argmax(dim=1)
        reverse = tokens.targets.flip(1).to(torch.uint8).argmax(dim=1)
        last = tokens.length - 1 - reverse
        pick = tokens.value.gather(1, torch.stack([first, last], dim=1))
        return cls(pick[:, 0], pick[:, 1], limit)


@dataclass
class Decoded:
    """The tokens of every row so far, in the order in which they were decoded."""

    rows: list[list[int]]
    confidence: list[list[float]]
    logits: list[Tensor] = field(default_factory=list)


def autoregressive(job: Job) -> Written:
    """Decodes a sequence target to its end and merges what was decoded into the sequence."""
    tokens, decoded = decode(job)
    ids = sequence_tokens(decoded.rows, -1, device=tokens.value.device)
    confidence = torch.zeros(ids.value.shape)
    for row, values in zip(confidence, decoded.confidence, strict=True):
        row[: len(values)] = torch.tensor(values)
    return Written.in_turn(tokens, ids.value, confidence)


def decode(job: Job, *, keep_logits: bool = False) -> tuple[Tokens, Decoded]:
    """The merged sequence, and what was decoded for it."""
    ends = Ends.of(job.tokens)
    if job.randomness.original:
        # The original reads both off the first row, and no row leaves before all have ended.
        ends = Ends(
            ends.start, ends.end[:1].expand_as(ends.end), ends.limit[:1].expand_as(ends.end)
        )
    decoded = _decode(job, ends, keep_logits)
    return merged(job.tokens, ends.start, decoded.rows, job.marks), decoded


def _decode(job: Job, ends: Ends, keep_logits: bool) -> Decoded:
    size, original = job.tokens.size, job.randomness.original
    decoded = Decoded([[] for _ in range(size)], [[] for _ in range(size)])
    active = torch.nonzero(ends.limit > 0)[:, 0]
    job = replace(job, randomness=job.randomness.rows(active))
    total = int(ends.limit.max()) if size else 0
    caches = _caches(job, total)
    if len(active) < size:
        caches = _select(caches, active, size, len(job.passes))
    amounts = _amounts(job)
    ids, ended = ends.start[active], torch.zeros(size, dtype=torch.bool, device=ends.start.device)
    for t in range(total):
        if not len(active):
            break
        logits = _next_logits(job, ids, t, caches)
        if keep_logits:
            decoded.logits.append(logits[:, 0])
        drawn = job.randomness.draw(at_median(logits, amounts), job.step)
        if len(amounts):  # as sure as the word itself is likely, not as all amounts are
            drawn = own_confidence(drawn.ids, logits)
        ids = drawn.ids[:, 0]
        for row, token, p in zip(
            active.tolist(), ids.tolist(), drawn.confidence[:, 0].tolist(), strict=True
        ):
            decoded.rows[row].append(token)
            decoded.confidence[row].append(p)
        ended[active] |= ids == ends.end[active]
        if job.on_token is not None:
            job.on_token(t + 1, total)
        stay = _staying(active, ended, ends.limit, t + 1, original)
        if not bool(stay.all()):
            index = torch.nonzero(stay)[:, 0]
            caches = _select(caches, index, len(active), len(job.passes))
            job = replace(job, randomness=job.randomness.rows(index))
            active, ids = active[index], ids[index]
    return decoded


def _amounts(job: Job) -> Tensor:
    """The number words that are taken at their median: int64[n]."""
    size = job.model.modality(job.name).vocab_size or 0
    known = job.marks.amounts if job.step.amounts == "median" else ()
    return torch.tensor([i for i in known if i < size], device=job.tokens.value.device).long()


def _staying(active: Tensor, ended: Tensor, limit: Tensor, done: int, original: bool) -> Tensor:
    if original:
        all_ended = bool(ended[active].all())
        return torch.full_like(active, not all_ended, dtype=torch.bool)
    return ~ended[active] & (limit[active] > done)


def _next_logits(job: Job, ids: Tensor, position: int, caches: list[BlockCache]) -> Tensor:
    embedding = job.model.target(job.name)
    y = embedding.token_emb(ids)[:, None] + embedding.step(position, 1)
    y = y.repeat(len(job.passes), 1, 1)
    context = caches[0].context
    return job.guided(job.model.run_decoder(y, context, caches=caches))


def _caches(job: Job, capacity: int) -> list[BlockCache]:
    """One cache a decoder block, for all passes, the context's keys and values filled in."""
    caches = []
    for block in job.model.decoder:
        keys, values = block.keys_values(job.context.tokens)  # type: ignore[operator]
        cross = (keys.contiguous(), values.contiguous())  # read for every token to come
        caches.append(BlockCache(KVCache.empty(keys, capacity), cross, job.context))
    return caches


def _select(caches: list[BlockCache], rows: Tensor, size: int, passes: int) -> list[BlockCache]:
    """The caches of some of `size` rows, in every pass."""
    index = torch.cat([rows + p * size for p in range(passes)])
    context = caches[0].context.select(index)
    return [c.select(index, context) for c in caches]


SCHEMES: dict[str, Callable[[Job], Written]] = {
    "maskgit": maskgit,
    "roar": roar,
    "autoregressive": autoregressive,
}
"""By name; their defaults stand in `target`."""


def merged(tokens: Tokens, start: Tensor, rows: list[list[int]], marks: Marks) -> Tokens:
    """A sequence with what was decoded for its sentinels put in their place; all of it is given.

    Rows are padded to the longest one.
    """
    sentinels = frozenset(marks.sentinels)
    whole = []
    for i, decoded in enumerate(rows):
        given = tokens.value[i][tokens.inputs[i]].tolist()
        whole.append(merge_spans(given, [int(start[i]), *decoded], sentinels))
    return sequence_tokens(whole, marks.pad, device=tokens.value.device)


def sequence_tokens(
    rows: list[list[int]], pad: int, device: torch.device | str | None = None
) -> Tokens:
    """Sequences of ids as given tokens, padded to the longest."""
    length = max([1, *map(len, rows)])
    value = torch.full((len(rows), length), pad, dtype=torch.int64)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        value[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        valid[i, : len(row)] = True
    return Tokens.given(value.to(device), valid.to(device), length=length)


def joined_copies(
    result: StepResult, batch: TokenBatch, step: Step, marks: Marks, *, original: bool
) -> StepResult:
    """The copies of each item, which stand in rows of their own, as one sequence an item.

    An item that gives the sequence keeps it.

    Args:
        result: of the batch with every item `step.copies` times
        batch: that before the step
        step: the step whose copies they are
        marks: special ids of the text vocabulary
        original: with the ends of all copies, not of the last alone
    """
    n = step.copies
    tokens, wanted = result.batch[step.target], batch[step.target].targets.any(dim=1).tolist()
    rows = [v[keep].tolist() for v, keep in zip(tokens.value, tokens.inputs, strict=True)]
    items = [rows[i : i + n] for i in range(0, len(rows), n)]
    joined = [
        _joined(copies, None if original else marks.eos) if is_wanted else copies[0]
        for copies, is_wanted in zip(items, wanted, strict=True)
    ]
    whole = sequence_tokens(joined, marks.pad, device=batch.device)
    ids, confidence = (
        rearrange(x, "(b n) k -> b (n k)", n=n) for x in (result.ids, result.confidence)
    )
    return StepResult.of(batch, step, Written.in_turn(whole, ids, confidence))


def _joined(copies: Sequence[Sequence[int]], eos: int | None) -> list[int]:
    """The copies of one item up to their ends, and one end; all that they hold without `eos`."""
    if eos is None:
        return list(chain.from_iterable(copies))
    return [*chain.from_iterable(takewhile(lambda i: i != eos, c) for c in copies), eos]
