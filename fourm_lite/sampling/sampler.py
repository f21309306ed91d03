"""The sampler: carries out a plan on a batch, step by step.

`iterate` makes the schedule, `_loop` goes through it, `_step` is one step of it: it encodes what is
known, and a scheme decodes some tokens of one target, which are known from then on. The schemes are
functions of `schemes`. Before any work a request is checked, and what it leaves open is filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import index

import torch

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError, ShapeError, suggest
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.device import threads_for
from fourm_lite.progress import Progress
from fourm_lite.sampling.passes import LEGACY_MARKS, Encoder, plan_passes
from fourm_lite.sampling.plan import Plan, Step
from fourm_lite.sampling.schemes import SCHEMES, joined_copies
from fourm_lite.sampling.state import Job, Randomness, StepResult, Written, mix
from fourm_lite.tokenization.words.spans import Marks, empty_text

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
        return self._loop(batch, steps, item_seeds(seed, batch.size), on_token)

    def _loop(
        self,
        batch: TokenBatch,
        steps: Sequence[Step],
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> Iterator[StepResult]:
        encoder = Encoder(self.model, self.marks)
        for step in steps:
            with torch.inference_mode(), self._precision(), threads_for(_rows(batch)):
                result = self._step(batch, step, encoder, seeds, on_token)
            batch = result.batch
            yield result

    def _step(
        self,
        batch: TokenBatch,
        step: Step,
        encoder: Encoder,
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> StepResult:
        tokens = batch[step.target]
        if not bool(tokens.targets.any()):
            return StepResult.of(batch, step, Written.nothing(tokens))
        if step.copies > 1:
            return self._copies(batch, step, encoder, seeds, on_token)
        given = [n for n in batch if n != step.target and bool(batch[n].inputs.any())]
        passes = plan_passes(step.guidance, step.conditions, given)
        job = Job(
            model=self.model,
            step=step,
            tokens=tokens,
            context=encoder(batch, passes),
            passes=passes,
            randomness=Randomness.of_step(step.index, seeds, original=self.original),
            marks=self.marks,
            on_token=on_token,
        )
        return StepResult.of(batch, step, SCHEMES[step.scheme](job))

    def run(
        self,
        batch: TokenBatch,
        plan: Plan | Sequence[Step],
        *,
        seed: Seed = 0,
        on_token: Progress | None = None,
    ) -> TokenBatch:
        """The batch after the last step of the plan; see `iterate`."""
        result = batch
        for step in self.iterate(batch, plan, seed=seed, on_token=on_token):
            result = step.batch
        return result

    def steps(self, batch: TokenBatch, plan: Plan | Sequence[Step]) -> Sequence[Step]:
        """The steps of a plan on a batch."""
        if not isinstance(plan, Plan):
            return plan
        given = [n for n in batch if bool(batch[n].inputs.any())]
        return plan.steps(self.model.config.modalities, given, original=self.original)

    def _precision(self) -> AbstractContextManager[None]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast)

    def _copies(
        self,
        batch: TokenBatch,
        step: Step,
        encoder: Encoder,
        seeds: Sequence[int],
        on_token: Progress | None,
    ) -> StepResult:
        """Samples a sequence several times for each item and joins the copies.

        SAM instances are generated like this: each copy names a few of them.
        """
        n = step.copies
        own = seeds if self.original else [mix(s, -1 - copy) for s in seeds for copy in range(n)]
        once = replace(step, copies=1)
        result = self._step(batch.repeat(n), once, encoder, own, on_token)
        return joined_copies(result, batch, step, self.marks, original=self.original)

    def _with_targets(self, batch: TokenBatch, steps: Sequence[Step]) -> TokenBatch:
        for name, step in {s.target: s for s in steps}.items():
            if name not in batch or not self.original:
                entry = self.model.modality(name)
                batch = with_wanted(batch, entry, self.marks, step.max_tokens)
        return batch


def _rows(batch: TokenBatch) -> int:
    """How many tokens are known or wanted, of all items together."""
    return sum(int((batch[name].inputs | batch[name].targets).sum()) for name in batch)


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
        FourMError: ids outside the vocabulary, or a sequence longer than the model reads
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
    if entry.kind == "sequence":
        empty = empty_sequence(batch.size, max_tokens or entry.max_tokens, marks)
    else:
        empty = Tokens.wanted(entry, batch.size)
    empty = empty.to(batch.device)
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


def empty_sequence(batch_size: int, num_tokens: int, marks: Marks) -> Tokens:
    """A sequence of which nothing is known, to be generated whole.

    The encoder sees a lone first sentinel; the decoder starts from it and adds
    `num_tokens - 1` tokens at most.
    """
    one = empty_text(num_tokens, marks)
    rows = (part.repeat(batch_size, 1) for part in (one.value, one.inputs, one.targets))
    return Tokens(*rows)


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
