"""How long work reports on itself: what the library's functions take as `progress`.

A total of 0 means that it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Called each time that more is done."""

    def __call__(self, done: int, total: int, /) -> object:
        """So much of the work is done."""


class StageProgress(Protocol):
    """For work of several stages, each with counts of its own."""

    def __call__(self, stage: str, done: int, total: int, /) -> object:
        """So much of the stage is done."""


class StepProgress(Protocol):
    """For training: called after each step with its numbers, `val/...` where it was validated."""

    def __call__(self, step: int, steps: int, numbers: Mapping[str, float], /) -> object:
        """So many steps are done."""


def of_stage(progress: StageProgress | None, stage: str) -> Progress | None:
    """The progress of one stage, for a function that has no stages."""
    if progress is None:
        return None
    return lambda done, total: progress(stage, done, total)


def of_total(progress: Progress | None, total: int) -> Callable[[int], object] | None:
    """The progress of work of a known total, for a function that reports a count alone."""
    if progress is None:
        return None
    return lambda done: progress(done, total)


def batches(
    items: Sequence[Item], size: int, progress: Progress | None = None
) -> Iterator[Sequence[Item]]:
    """Parts of a list, the last perhaps shorter; each is reported when the next is asked for."""
    for start in range(0, len(items), size):
        part = items[start : start + size]
        yield part
        if progress is not None:
            progress(start + len(part), len(items))
