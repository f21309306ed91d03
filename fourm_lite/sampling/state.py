"""What the decoding schemes share: the job of one step, its randomness, and what it writes.

A scheme is a function from a `Job` to a `Written`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.blocks import Context
from fourm_lite.progress import Progress
from fourm_lite.sampling.logits import Drawn, draw_original, draw_rows
from fourm_lite.sampling.passes import Pass, combine
from fourm_lite.sampling.plan import Step
from fourm_lite.tokenization.words.spans import Marks


@dataclass(frozen=True)
class Randomness:
    """Where a step's random numbers come from.

    Ours: one generator an item, so that an item's result does not depend on its neighbours.
    The original's: one generator for the batch, seeded anew in every step.
    """

    generators: Sequence[torch.Generator]
    original: bool = False

    @classmethod
    def of_step(cls, index: int, seeds: Sequence[int], *, original: bool = False) -> Randomness:
        """That of one step: with generators of its own, so a plan can be taken up at any step."""
        own = [seeds[0] + index] if original else [mix(seed, index) for seed in seeds]
        return cls([torch.Generator().manual_seed(seed) for seed in own], original)

    def orders(self, batch_size: int, length: int) -> Tensor:
        """A random number for each position: float[batch_size, length]."""
        if self.original:
            return torch.rand(length, generator=self.generators[0]).expand(batch_size, -1)
        return torch.stack([torch.rand(length, generator=g) for g in self.generators])

    def draw(self, logits: Tensor, step: Step, valid: Tensor | None = None) -> Drawn:
        """Ids for logits float[B, M, V]; the items' own generators are used up alike."""
        how: dict[str, Any] = {n: getattr(step, n) for n in ("temperature", "top_k", "top_p")}
        if not self.original:
            return draw_rows(logits, self.generators, valid=valid, **how)
        drawn = draw_original(logits.flatten(0, 1), seed=self.generators[0], **how)
        shape = logits.shape[:2]
        return Drawn(drawn.ids.view(shape), drawn.confidence.view(shape))

    def rows(self, index: Tensor) -> Randomness:
        """The generators of some items."""
        if self.original:
            return self
        return Randomness([self.generators[i] for i in index.tolist()])


@dataclass(frozen=True)
class Job:
    """One step of a plan on a batch, ready to be decoded."""

    model: FourM
    step: Step
    tokens: Tokens
    context: Context
    passes: Sequence[Pass]
    randomness: Randomness
    marks: Marks
    on_token: Progress | None = None

    @property
    def name(self) -> str:
        """The target modality."""
        return self.step.target

    def guided(self, y: Tensor) -> Tensor:
        """Logits of decoder outputs float[P * B, M, D], passes combined: float32[B, M, V].

        Logits are linear in the output and have no bias, so the outputs are combined, not they.
        """
        return self.model.logits(combine(y, self.passes).to(y.dtype), self.name).float()


def mix(seed: int, index: int) -> int:
    """A seed of its own for a step or a copy: splitmix64's first round."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 31)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 29)) % 2**63


@dataclass(frozen=True)
class Written:
    """What a scheme made of its target's tokens, and what it chose from.

    A scheme that goes token by token offers no candidates.

    Shapes:
        positions, ids: int64[B, k]; what was written (a text: the tokens generated, copy after
            copy); ids are -1 where nothing was
        confidence: float[B, k], the probability of each under the distribution it was drawn from;
            without meaning where nothing was written
        candidates: int64[B, m], the positions that were offered to the decoder
        logits: float32[B, m, V] of the candidates, guided, before filtering
    """

    tokens: Tokens = field(repr=False)
    positions: Tensor
    ids: Tensor
    confidence: Tensor
    candidates: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)

    @classmethod
    def in_turn(cls, tokens: Tokens, ids: Tensor, confidence: Tensor) -> Written:
        """What was written token by token: ids int64[B, k], confidence float[B, k]."""
        nothing = torch.empty(len(ids), 0, device=ids.device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        return cls(tokens, positions, ids, confidence, nothing.long(), nothing[..., None])

    @classmethod
    def nothing(cls, tokens: Tokens) -> Written:
        """Of a step to which the items leave nothing."""
        none = torch.empty(tokens.size, 0, device=tokens.value.device)
        return cls.in_turn(tokens, none.long(), none)


@dataclass(frozen=True, kw_only=True)
class StepResult(Written):
    """The batch after one step, and what the step did."""

    batch: TokenBatch
    step: Step

    @classmethod
    def of(cls, batch: TokenBatch, step: Step, written: Written) -> StepResult:
        """The result of a step on a batch."""
        after = batch.with_({step.target: written.tokens})
        return cls(**vars(written), batch=after, step=step)
