"""The sampler: carries out a plan on a batch, step by step.

Every step encodes what is known, decodes some tokens of one target and returns a new batch in which
they are known too. `iterate` yields every step, `run` gives the last batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain, takewhile
from operator import index

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.progress import Progress
from fourm_lite.sampling.autoregressive import Said, autoregressive, sequence_tokens
from fourm_lite.sampling.check import check_request
from fourm_lite.sampling.parallel import Written, maskgit, roar
from fourm_lite.sampling.passes import LEGACY_MARKS, Encoder, plan_passes
from fourm_lite.sampling.plan import Plan, Step
from fourm_lite.sampling.state import Job, Randomness, StepResult
from fourm_lite.tokenization.words.spans import Marks

PARALLEL = {"maskgit": maskgit, "roar": roar}

Seed = int | Sequence[int]
"""One seed for every item, or one an item."""


class Sampler:
    """Generates any modality from any others.

    Args:
        model: in eval mode
        marks: special ids of the model's text vocabulary; 4M's by default
        original: the original's behaviour where ours differs on purpose (see docs/differences.md):
            one generator for the batch, ends read off the first row, argmax without confidence
        autocast: the dtype in which matrix products are computed, such as torch.bfloat16; None:
            that of the weights. Weights that are bfloat16 themselves are faster: `load_model`'s
            `dtype`

    Example:
        >>> result = Sampler(model).run(batch, Plan.of(Target("tok_depth@224")))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: FourM,
        *,
        marks: Marks = LEGACY_MARKS,
        original: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        if model.training:
            raise FourMError(
                "the model is in training mode, so its results would be random; call model.eval()"
            )
        self.model, self.marks, self.original = model, marks, original
        self.autocast = autocast

    def run(
        self,
        batch: TokenBatch,
        plan: Plan | Sequence[Step],
        *,
        seed: Seed = 0,
        on_token: Progress | None = None,
    ) -> TokenBatch:
        """The batch after the last step of the plan."""
        result = batch
        for step in self.iterate(batch, plan, seed=seed, on_token=on_token):
            result = step.batch
        return result

    def iterate(
        self,
        batch: TokenBatch,
        plan: Plan | Sequence[Step],
        *,
        seed: Seed = 0,
        on_token: Progress | None = None,
    ) -> Iterator[StepResult]:
        """Carries out a plan, yielding every step.

        Args:
            batch: what is given; a target of which an item holds nothing starts empty
            plan: a plan, or its steps
            seed: an item's result depends on its own seed alone, not on the rest of the batch
            on_token: called for each token while a text grows

        Raises:
            FourMError: the model cannot do it, or nothing is given; before any work
        """
        steps = self.steps(batch, plan)
        check_request(self.model, batch, steps)
        batch = self._with_targets(batch, steps)
        return self._steps(batch, steps, item_seeds(seed, batch.size), on_token)

    def steps(self, batch: TokenBatch, plan: Plan | Sequence[Step]) -> Sequence[Step]:
        """The steps of a plan on a batch."""
        if not isinstance(plan, Plan):
            return plan
        given = [n for n in batch if bool(batch[n].inputs.any())]
        return plan.steps(self.model.config.modalities, given, original=self.original)

    def _steps(
        self,
        batch: TokenBatch,
        steps: Sequence[Step],
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> Iterator[StepResult]:
        encoder = Encoder(self.model, self.marks)
        for step in steps:
            with torch.inference_mode(), self._precision():
                result = self._step(batch, step, encoder, seeds, on_token)
            batch = result.batch
            yield result

    def _precision(self) -> AbstractContextManager[None]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast)

    def _step(
        self,
        batch: TokenBatch,
        step: Step,
        encoder: Encoder,
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> StepResult:
        if not bool(batch[step.target].targets.any()):
            return _nothing_result(batch, step)
        if step.copies > 1:
            return self._copies(batch, step, encoder, seeds, on_token)
        passes = plan_passes(step.guidance, step.conditions, self._given(batch, step))
        job = Job(
            model=self.model,
            step=step,
            tokens=batch[step.target],
            context=encoder(batch, passes),
            passes=passes,
            randomness=self._randomness(seeds, step.index),
            marks=self.marks,
            on_token=on_token,
        )
        if step.scheme == "autoregressive":
            tokens, said = autoregressive(job)
            return _said_result(batch, step, tokens, said)
        return _written_result(batch, step, PARALLEL[step.scheme](job))

    def _given(self, batch: TokenBatch, step: Step) -> list[str]:
        return [n for n in batch if n != step.target and bool(batch[n].inputs.any())]

    def _copies(
        self,
        batch: TokenBatch,
        step: Step,
        encoder: Encoder,
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> StepResult:
        """Samples a sequence several times for each item and joins what the copies say.

        SAM instances are generated like this: each copy names a few of them. An item that gives the
        sequence keeps it.
        """
        n = step.copies
        several = [_mix(seed, -1 - copy) for seed in seeds for copy in range(n)]
        result = self._step(
            batch.repeat(n),
            replace(step, copies=1),
            encoder,
            list(seeds) if self.original else several,
            on_token,
        )
        tokens, wanted = result.batch[step.target], batch[step.target].targets.any(dim=1).tolist()
        rows = [v[keep].tolist() for v, keep in zip(tokens.value, tokens.inputs, strict=True)]
        items = [rows[i : i + n] for i in range(0, len(rows), n)]
        joined = [
            self._joined(copies) if is_wanted else copies[0]
            for copies, is_wanted in zip(items, wanted, strict=True)
        ]
        whole = sequence_tokens(joined, self.marks.pad, device=batch.device)
        return _joined_result(result, batch.with_({step.target: whole}), step)

    def _joined(self, copies: Sequence[Sequence[int]]) -> list[int]:
        """What the copies of one item say up to their ends, and one end; original: every end."""
        if self.original:
            return list(chain.from_iterable(copies))
        eos = self.marks.eos
        return [*chain.from_iterable(takewhile(lambda i: i != eos, c) for c in copies), eos]

    def _randomness(self, seeds: Sequence[int], index: int) -> Randomness:
        if self.original:
            return Randomness.of_step(seeds[0] + index)
        # Every step has its own generators, so a plan can be taken up at any step.
        return Randomness.of_items([_mix(seed, index) for seed in seeds])

    def _with_targets(self, batch: TokenBatch, steps: Sequence[Step]) -> TokenBatch:
        for name, step in {s.target: s for s in steps}.items():
            if name not in batch or not self.original:
                entry = self.model.modality(name)
                batch = with_wanted(batch, entry, self.marks, step.max_tokens)
        return batch


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

    The encoder sees a lone first sentinel; the decoder starts from it and may say
    `num_tokens - 1` tokens.
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


def _mix(seed: int, index: int) -> int:
    """A seed of its own for a step or a copy: splitmix64's first round."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 31)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 29)) % 2**63


def _nothing_result(batch: TokenBatch, step: Step) -> StepResult:
    """The result of a step to which the items leave nothing."""
    nothing = torch.empty(batch.size, 0, device=batch.device)
    return StepResult(
        batch=batch,
        step=step,
        positions=nothing.long(),
        ids=nothing.long(),
        confidence=nothing,
        candidates=nothing.long(),
        logits=nothing[..., None],
    )


def _said_result(batch: TokenBatch, step: Step, tokens: Tokens, said: Said) -> StepResult:
    ids = sequence_tokens(said.rows, -1, device=batch.device)
    confidence = torch.zeros(ids.value.shape)
    for i, row in enumerate(said.confidence):
        confidence[i, : len(row)] = torch.tensor(row)
    positions = torch.arange(ids.length, device=batch.device).expand(batch.size, -1)
    nothing: Tensor = torch.empty(batch.size, 0)
    return StepResult(
        batch=batch.with_({step.target: tokens}),
        step=step,
        positions=positions,
        ids=ids.value,
        confidence=confidence,
        candidates=nothing.long(),
        logits=nothing[..., None],
    )


def _joined_result(result: StepResult, batch: TokenBatch, step: Step) -> StepResult:
    """The result of a step whose copies stand in rows of their own, in one row an item."""
    n = step.copies
    ids, confidence = (
        rearrange(x, "(b n) k -> b (n k)", n=n) for x in (result.ids, result.confidence)
    )
    positions = torch.arange(ids.shape[1], device=ids.device).expand(batch.size, -1)
    return StepResult(
        batch=batch,
        step=step,
        positions=positions,
        ids=ids,
        confidence=confidence,
        candidates=result.candidates[::n],
        logits=result.logits[::n],
    )


def _written_result(batch: TokenBatch, step: Step, written: Written) -> StepResult:
    return StepResult(
        batch=batch.with_({step.target: written.tokens}),
        step=step,
        positions=written.positions,
        ids=written.ids,
        confidence=written.confidence,
        candidates=written.candidates,
        logits=written.logits,
    )
