"""A request, before any work is done: whether it can be carried out, what is wanted of each item,
and the seed of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index

import torch

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError, ShapeError, suggest
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.sampling.plan import Step
from fourm_lite.tokenization.words.spans import Marks

Seed = int | Sequence[int]
"""One seed for every item, or one an item."""


def check_request(model: FourM, batch: TokenBatch, steps: Sequence[Step]) -> None:
    """Checks that the model can read the batch and predict the targets.

    Raises:
        UnknownNameError: a modality that the model does not know
        FourMError: a target that it cannot predict, nothing to start from, a text that is too long
    """
    if not steps:
        raise FourMError("the plan has no steps: name at least one target")
    targets = [s.target for s in steps]
    for name in [*batch, *targets]:
        model.modality(name)
    for name in targets:
        if not model.can([], name):
            raise FourMError(f"this model cannot predict '{name}'.{suggestion(model, name)}")
    given = [n for n in batch if n not in targets or bool(batch[n].inputs.any())]
    unread = [n for n in given if not model.can([n], targets[0])]
    if unread:
        raise FourMError(
            f"this model cannot read {unread}; it reads {sorted(model.encoder_embeddings)}"
        )
    if batch.size == 0:
        raise FourMError("nothing is given: the batch holds no item")
    for name in given:
        check_tokens(model, name, batch)


def suggestion(model: FourM, name: str) -> str:
    """What can be predicted instead."""
    known = sorted(model.decoder_embeddings)
    return f" It predicts {known}.{suggest(name, known)}"


def check_tokens(model: FourM, name: str, batch: TokenBatch) -> None:
    """Checks the values of one modality.

    Raises:
        ShapeError: the value does not have the modality's shape
        FourMError: ids outside the vocabulary, or a sequence longer than the model tells apart
    """
    entry, tokens = model.modality(name), batch[name]
    shape, value = entry.value_shape(batch.size), tokens.value
    fits = len(shape) == value.ndim and all(
        s is None or s == v for s, v in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"'{name}' expects {entry.dtype}{[('*' if s is None else s) for s in shape]}, "
            f"got {list(value.shape)}"
        )
    if entry.vocab_size is not None and value.numel():
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= entry.vocab_size:
            raise FourMError(
                f"'{name}' has the ids 0..{entry.vocab_size - 1}, got {low}..{high}; was it "
                "tokenized by another tokenizer?"
            )
    if entry.kind == "sequence":
        longest = int(tokens.inputs.sum(dim=1).max())
        if longest > entry.max_tokens + 1:
            raise FourMError(
                f"'{name}' may hold {entry.max_tokens} tokens, got {longest}; shorten it"
            )


def with_wanted(
    batch: TokenBatch, entry: Modality, marks: Marks, max_tokens: int | None = None
) -> TokenBatch:
    """The batch in which every item that holds nothing of a grid or sequence wants all of it.

    Items that give a part of it, or want one already, keep their own.

    Args:
        batch: at least one item
        entry: what is wanted
        marks: special ids of the text vocabulary
        max_tokens: how long a sequence may become; the modality's limit by default
    """
    empty = _empty(entry, batch.size, marks, max_tokens).to(batch.device)
    if entry.name not in batch:
        return batch.with_({entry.name: empty})
    held = batch[entry.name]
    lacking = ~(held.inputs | held.targets).any(dim=1)
    if not bool(lacking.any()):
        return batch
    length, rows = max(empty.length, held.length), lacking[:, None]
    new, old = empty.padded(length), held.padded(length)
    mixed = Tokens(
        torch.where(rows, new.value, old.value),
        inputs=torch.where(rows, new.inputs, old.inputs),
        targets=torch.where(rows, new.targets, old.targets),
        groups=old.groups,
    )
    return batch.with_({entry.name: mixed})


def _empty(entry: Modality, batch_size: int, marks: Marks, max_tokens: int | None) -> Tokens:
    if entry.kind == "sequence":
        return empty_sequence(batch_size, max_tokens or entry.max_tokens, marks)
    return Tokens.wanted(entry, batch_size)


def empty_sequence(batch_size: int, num_tokens: int, marks: Marks) -> Tokens:
    """A sequence of which nothing is known, to be generated whole.

    The encoder sees a lone first sentinel; the decoder starts from it and adds
    `num_tokens - 1` tokens at most.
    """
    num_tokens = max(2, num_tokens)
    value = torch.full((batch_size, num_tokens), marks.pad, dtype=torch.int64)
    value[:, :2] = marks.sentinel(1)
    value[:, -1] = marks.sentinel(2)
    inputs = torch.zeros(batch_size, num_tokens, dtype=torch.bool)
    inputs[:, 0] = True
    return Tokens(value, inputs=inputs, targets=~inputs)


def item_seeds(seed: Seed, size: int) -> list[int]:
    """The seed of each item; whole numbers of any type, NumPy's too.

    Raises:
        FourMError: no whole number, or not as many as there are items
    """
    try:
        seeds = [index(s) for s in seed] if isinstance(seed, Iterable) else [index(seed)] * size
    except TypeError as error:
        raise FourMError(f"a seed is a whole number, or one an item; got {seed!r}") from error
    if len(seeds) != size:
        raise FourMError(f"give one seed, or one for each of the {size} items; got {len(seeds)}")
    return seeds
