"""Batches made ready ahead of the step that needs them: at once, by threads, or by processes.

A batch is a function of its step, so whoever makes it, the run is the same.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol

import torch

AHEAD = 2
"""Steps that each process keeps ready."""


class Stream(Protocol):
    """Batches as a function of the step."""

    @property
    def fingerprint(self) -> str:
        """Tells this data, in this order, from other data."""
        ...

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Any:
        """The batch of a step for one of `world` processes."""
        ...

    def epoch(self, step: int) -> float:
        """Passes over the data before that step."""
        ...


@dataclass(frozen=True)
class Batches:
    """All batches of an optimiser step; by number, as torch's loaders ask for them."""

    stream: Stream
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> list[Any]:
        first = step * self.accumulate
        return [
            self.stream.batch(first + i, rank=self.rank, world=self.world)
            for i in range(self.accumulate)
        ]


def in_threads(load: Batches, steps: Sequence[int], count: int) -> Iterator[list[Any]]:
    """The batches of the steps, `count` of them in the making; 0 makes each when it is due."""
    if not count:
        yield from (load[step] for step in steps)
        return
    with ThreadPoolExecutor(count) as pool:
        ahead: deque[Future[list[Any]]] = deque()
        for step in steps:
            # In this context, so that who is hearing what is left out (`photos.records`) hears it
            ahead.append(pool.submit(copy_context().run, load.__getitem__, step))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def in_processes(load: Batches, steps: Sequence[int], count: int) -> Iterable[list[Any]]:
    """The batches of the steps, made by `count` processes with one thread each."""
    from torch.utils.data import DataLoader

    loader: DataLoader[list[Any]] = DataLoader(
        load,  # type: ignore[arg-type]
        batch_size=None,
        sampler=steps,
        num_workers=count,
        prefetch_factor=AHEAD,
        worker_init_fn=_one_thread,
    )
    with warnings.catch_warnings():
        # where lance was imported it warns of every fork; these processes read no table
        warnings.filterwarnings("ignore", "lance is not fork-safe")
        return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
