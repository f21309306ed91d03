"""Which items of a call go through the network together, and what is generated from them.

Where positions are stored, all of them do: sizes are alike, and what an item lacks is hidden. Where
positions are interpolated, items of one set of modalities and of one size do, so that no item is
read as its neighbours are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import ConfigError
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import fitted
from fourm_lite.pipeline.readers import collate
from fourm_lite.progress import Progress
from fourm_lite.sampling.plan import Plan
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.sampling.state import StepResult
from fourm_lite.tokenization.words.spans import Marks

OnStep = Callable[[StepResult, int, int], None]
"""Called after each step with (result, step number from 1, number of steps)."""


def alike(model: FourM, items: Sequence[TokenBatch]) -> Iterable[list[int]]:
    """Places of items, each a batch of one, that go together; only texts are padded."""
    if model.config.positions != "interpolated":
        return [list(range(len(items)))] if items else []
    found = dict[Any, list[int]]()
    for place, item in enumerate(items):
        sizes = [item[n].value.shape for n in item if model.modality(n).kind != "sequence"]
        found.setdefault((*item, *sizes), []).append(place)
    return found.values()


def thoughts(plan: Plan, config: FourMConfig) -> Plan:
    """The plan of what is thought of an item first, if the model can read all of it.

    Raises:
        ConfigError: it cannot, so that the answer would be the same without
    """
    read = [m.name for m in config.inputs]
    absent = [name for name in plan.names if name not in read]
    if absent:
        raise ConfigError(f"to think of {absent} changes nothing: this model reads {read}")
    return plan


def thoughtful(first: Plan, plan: Plan, config: FourMConfig) -> Plan:
    """A plan after what is thought of first; raises as `thoughts`."""
    return replace(plan, targets=(*thoughts(first, config).targets, *plan.targets))


@dataclass(frozen=True)
class Part:
    """Some items with what was generated from them.

    Args:
        places: which items
        model: of their size
        batch: what was given and what was made
        names: the modalities that were made, in order
        confidence: of each of them, how sure each step was of its tokens
    """

    places: list[int]
    model: FourM
    batch: TokenBatch
    names: list[str]
    confidence: dict[str, list[Tensor]]


def generated(
    model: FourM,
    items: Sequence[TokenBatch],
    plan: Plan,
    seeds: Sequence[int],
    marks: Marks,
    *,
    on_step: OnStep | None = None,
    on_token: Progress | None = None,
) -> Iterator[Part]:
    """What a plan makes of items, each a batch of one; one seed an item.

    Args:
        model: of any size
        items: what is given
        plan: what is made
        seeds: one an item
        marks: special ids of the model's texts
        on_step: told of each step, for each size of pictures anew
        on_token: told of each token of a text
    """
    for places in alike(model, items):
        batch = collate([items[place] for place in places])
        own = fitted(model, batch, plan.names)
        sampler, drawn = Sampler(own, marks=marks), [seeds[place] for place in places]
        steps = sampler.steps(batch, plan)
        confidence: dict[str, list[Tensor]] = {}
        for i, result in enumerate(sampler.iterate(batch, steps, seed=drawn, on_token=on_token)):
            batch = result.batch
            written = result.confidence.cpu().where(result.ids.cpu() >= 0, torch.nan)
            confidence.setdefault(result.step.target, []).append(written)
            if on_step is not None:
                on_step(result, i + 1, len(steps))
        names = list(dict.fromkeys(step.target for step in steps))
        yield Part(places, own, batch, names, confidence)
