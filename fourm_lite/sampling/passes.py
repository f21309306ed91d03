"""The passes of guided generation: with the conditions, without them, with one of them.

Guidance is a weighted sum of the logits of the passes, `l = sum_p w_p l_p`, with weights that
sum to one. One scale s gives the pass with the conditions the weight s and the one without them
1 - s; a weight per condition gives each condition its own pass. An unguided step is one pass of
weight 1.

Source:
    Classifier-free guidance (Ho & Salimans 2022); 4M (Mizrahi et al. 2023), section 4.3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.model.fourm import Encoded, FourM
from fourm_lite.nn.attention import Parts, blocked
from fourm_lite.nn.blocks import Context
from fourm_lite.tokenization.words.spans import Marks

LEGACY_MARKS = Marks(
    pad=0,
    eos=3,
    sentinels=tuple(range(4, 204)),
    amounts=tuple(range(204, 1204)),
)
"""The ids of 4M's text vocabulary."""


@dataclass(frozen=True)
class Pass:
    """What one pass hides from the model, and how much its logits count.

    `hidden` conditions take the form they have when nothing is known; `dropped` ones are not there.
    """

    weight: float
    hidden: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def plan_passes(
    guidance: float | Mapping[str, float], conditions: Sequence[str], given: Sequence[str]
) -> list[Pass]:
    """The passes of one step.

    Args:
        guidance: one scale for all conditions, or a weight for each
        conditions: modalities that the unconditional pass hides
        given: modalities of the batch; conditions that it lacks do not count
    """
    conditions = [name for name in conditions if name in given]
    if isinstance(guidance, Mapping):
        weights = {n: float(w) for n, w in guidance.items() if n in given}
        everything = frozenset(weights)
        singles = [Pass(w, dropped=everything - {n}) for n, w in weights.items()]
        return [*singles, Pass(1.0 - sum(weights.values()), hidden=everything)]
    scale = float(guidance)
    if scale == 1.0 or not conditions:
        return [Pass(1.0)]
    return [Pass(scale), Pass(1.0 - scale, hidden=frozenset(conditions))]


def _hidden_grid(tokens: Tokens, marks: Marks) -> Tokens:
    return tokens.hidden()


def _hidden_sequence(tokens: Tokens, marks: Marks) -> Tokens:
    """An empty text: the encoder sees a lone first sentinel."""
    value = torch.full_like(tokens.value, marks.pad)
    value[:, 0] = marks.sentinel(1)
    return Tokens(value, _first_only(tokens.inputs), torch.zeros_like(tokens.targets))


def _hidden_features(tokens: Tokens, marks: Marks) -> Tokens:
    value = torch.zeros_like(tokens.value)
    return Tokens(value, _first_only(tokens.inputs), torch.zeros_like(tokens.targets))


def _first_only(inputs: Tensor) -> Tensor:
    """Only the first position; an item without the modality stays without it."""
    first = torch.zeros_like(inputs)
    first[:, 0] = inputs.any(dim=1)
    return first


HIDERS: dict[str, Callable[[Tokens, Marks], Tokens]] = {
    "pixels": _hidden_grid,
    "grid": _hidden_grid,
    "sequence": _hidden_sequence,
    "features": _hidden_features,
}


def without(model: FourM, batch: TokenBatch, names: Sequence[str], marks: Marks) -> TokenBatch:
    """The batch as it looks when nothing is known of some modalities."""
    kinds = model.config.modalities
    return batch.with_({n: HIDERS[kinds[n].kind](batch[n], marks) for n in names if n in batch})


BESIDE = 4096
"""Tokens up to which a product gains from the tokens of another pass beside its own."""

Key = tuple[object, ...]


@dataclass
class Encoder:
    """Encodes the passes of a step; a pass whose input did not change is not encoded again."""

    model: FourM
    marks: Marks

    def __post_init__(self) -> None:
        """Starts with an empty memory."""
        self._memory: dict[Pass, tuple[Key, Encoded]] = {}

    def __call__(self, batch: TokenBatch, passes: Sequence[Pass]) -> Context:
        """The contexts of all passes, one after the other: tokens float[P * B, N, D]."""
        new: dict[Pass, tuple[Key, TokenBatch]] = {}
        for one in passes:
            names = [
                n for n in batch if n in self.model.encoder_embeddings and n not in one.dropped
            ]
            # Tokens are never changed in place, so the same objects give the same context.
            given = [n for n in names if bool(batch[n].inputs.any())]
            key: Key = tuple(x for n in given for x in (n, batch[n]))
            known = self._memory.get(one)
            if known is None or not _same(known[0], key):
                shown = without(self.model, batch.only(*names), sorted(one.hidden), self.marks)
                new[one] = key, shown
        encoded = self._encoded([shown for _, shown in new.values()], batch.size)
        for (one, (key, _)), made in zip(new.items(), encoded, strict=True):
            self._memory[one] = key, made
        return stack([self._memory[one][1] for one in passes])

    def _encoded(self, batches: Sequence[TokenBatch], size: int) -> list[Encoded]:
        count = sum(int(batch[name].inputs.sum()) for batch in batches for name in batch)
        if len(batches) > 1 and count <= BESIDE:
            return self.model.encode_beside(batches, batch_size=size)
        return [self.model.encode(batch, batch_size=size) for batch in batches]


def _same(a: Key, b: Key) -> bool:
    return len(a) == len(b) and all(
        x is y or (isinstance(x, str) and x == y) for x, y in zip(a, b, strict=True)
    )


@dataclass(frozen=True)
class Joined(Context):
    """Contexts of several passes as one batch, the shorter ones padded; `parts` are not."""

    parts: tuple[Context, ...] = ()

    def unpadded(self) -> Context:
        """The same with the tokens of all passes in one row, for grids: see `Parts`."""
        tokens = [part.tokens for part in self.parts]
        if len({x.shape[1] for x in tokens}) == 1:
            return self
        biases = [part.bias for part in self.parts if not isinstance(part.bias, Parts)]
        assert len(biases) == len(tokens)
        return Context(Parts.row(tokens), Parts.of(tokens, biases), self.present)


def stack(encoded: Sequence[Encoded]) -> Context:
    """Contexts of several passes as one batch; shorter ones are padded."""
    contexts = [e.context for e in encoded]
    if len(contexts) == 1:
        return contexts[0]
    length = max(c.tokens.shape[1] for c in contexts)
    tokens = torch.cat([F.pad(c.tokens, (0, 0, 0, length - c.tokens.shape[1])) for c in contexts])
    valid = torch.cat(
        [F.pad(e.packed.valid, (0, length - e.packed.valid.shape[1])) for e in encoded]
    )
    parts = tuple(contexts)
    if bool(valid.all()):
        return Joined(tokens, parts=parts)
    present = valid.any(dim=1)
    return Joined(
        tokens,
        blocked(valid, tokens.dtype)[:, None, None, :],
        None if bool(present.all()) else present[:, None, None],
        parts,
    )


def combine(outputs: Tensor, passes: Sequence[Pass]) -> Tensor:
    """The weighted sum of the passes' outputs: float[P * B, ...] -> float32[B, ...].

    Written as base + sum w (l - base), which is exact where the passes agree.
    """
    if len(passes) == 1:
        return outputs.float()
    *others, base = outputs.float().chunk(len(passes))
    out = base
    for one, p in zip(others, passes, strict=False):
        out = out + p.weight * (one - base)
    return out
