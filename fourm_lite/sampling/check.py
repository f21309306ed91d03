"""Whether a request can be carried out: said before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import FourMError, ShapeError, suggest
from fourm_lite.model.fourm import FourM
from fourm_lite.sampling.plan import Step


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
