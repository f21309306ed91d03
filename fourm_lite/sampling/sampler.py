"""The sampler: carries out a plan on a batch, step by step.

`iterate` makes the schedule, `_loop` goes through it, `_step` is one step of it: it encodes what is
known, and a scheme decodes some tokens of one target, which are known from then on. The schemes are
functions beside this file, `parallel` and `autoregressive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import FourMError
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.threads import threads_for
from fourm_lite.progress import Progress
from fourm_lite.sampling.autoregressive import autoregressive, joined_copies
from fourm_lite.sampling.parallel import PARALLEL
from fourm_lite.sampling.passes import LEGACY_MARKS, Encoder, plan_passes
from fourm_lite.sampling.plan import Plan, Step
from fourm_lite.sampling.request import Seed, check_request, item_seeds, with_wanted
from fourm_lite.sampling.state import Job, Randomness, StepResult, Written, mix
from fourm_lite.tokenization.words.spans import Marks

SCHEMES: dict[str, Callable[[Job], Written]] = {**PARALLEL, "autoregressive": autoregressive}


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
