"""Generation written the plain way: no cache, no joined passes, attention written out.

It spends what the original spends (SPEC section 4): every text token runs the decoder over the
whole prefix and scores the vocabulary at every position, every pass runs on its own, every modality
of the batch is embedded. The tests compare results with it, the benchmarks speed. Temperature 0
only, so that no draw is involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch
from fourm_lite.model.fourm import Encoded, FourM
from fourm_lite.model.likelihood import sequence_logits
from fourm_lite.model.packing import take_first
from fourm_lite.nn import attention
from fourm_lite.nn import layers as linear
from fourm_lite.sampling.passes import Pass, without
from fourm_lite.sampling.schemes import Ends, decode_positions
from fourm_lite.tokenization.words.spans import Marks


@contextmanager
def eager() -> Iterator[None]:
    """Attention written out, its scores in memory, and torch's own linear maps: the original's."""

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        attend = None if bias is None else bias == 0
        return attention.eager_attention(q, k, v, attend)

    with (
        patch.object(attention, "fused_attention", plain),
        patch.object(linear, "_plain_inference", lambda *_: False),
    ):
        yield


def encode_pass(model: FourM, batch: TokenBatch, which: Pass, marks: Marks) -> Encoded:
    """One pass; every modality that the encoder knows is embedded, hidden or not."""
    names = [n for n in batch if n in model.encoder_embeddings and n not in which.dropped]
    shown = without(model, batch.only(*names), sorted(which.hidden), marks)
    for name in names:
        model.encoder_embeddings[name].content(shown[name])
    return model.encode(shown, batch_size=batch.size)


def combined(every: Sequence[Tensor], passes: Sequence[Pass]) -> Tensor:
    return sum((p.weight * x for x, p in zip(every, passes, strict=True)), torch.zeros(()))


@torch.inference_mode()
def uncached_text(
    model: FourM,
    batch: TokenBatch,
    name: str,
    passes: Sequence[Pass],
    marks: Marks,
    *,
    stop: bool = True,
) -> tuple[list[list[int]], Tensor]:
    """Greedy text: the ids said by each row, and the logits float32[B, T, V] of every token."""
    ends = Ends.of(batch[name])
    contexts = [encode_pass(model, batch, p, marks).context for p in passes]
    ids, every, ended = ends.start[:, None], [], torch.zeros(batch.size, dtype=torch.bool)
    for _ in range(int(ends.limit.max())):
        logits = [sequence_logits(model, name, ids, context) for context in contexts]
        last = combined(logits, passes)[:, -1]
        every.append(last)
        new = last.argmax(dim=-1)
        ids = torch.cat([ids, new[:, None]], dim=1)
        ended |= new == ends.end
        if stop and bool(ended.all()):
            break
    said = []
    for row, end, limit in zip(ids[:, 1:].tolist(), ends.end.tolist(), ends.limit, strict=True):
        cut = row.index(end) + 1 if stop and end in row else len(row)
        said.append(row[: min(cut, int(limit))])
    return said, torch.stack(every, dim=1)


@torch.inference_mode()
def unbatched_maskgit(
    model: FourM,
    batch: TokenBatch,
    name: str,
    counts: Sequence[int],
    passes: Sequence[Pass],
    marks: Marks,
) -> Tensor:
    """Greedy MaskGIT: ids int64[B, L]."""
    for count in counts:
        tokens = batch[name]
        positions = take_first(tokens.targets, int(tokens.targets.sum(dim=1).max()))
        valid = torch.ones_like(positions, dtype=torch.bool)
        logits = []
        for p in passes:
            context = encode_pass(model, batch, p, marks).context
            y = decode_positions(model, name, positions, valid, context)
            logits.append(model.logits(y, name))
        probs = combined(logits, passes).softmax(dim=-1)
        confidence, ids = probs.max(dim=-1)
        best = confidence.topk(count, dim=1).indices
        revealed = tokens.reveal(positions.gather(1, best), ids.gather(1, best))
        batch = batch.with_({name: revealed})
    return batch[name].value
