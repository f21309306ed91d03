"""Progress bars on stderr, for people at a terminal only; a pipe sees nothing of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fourm_lite.names import shown


class StepProgress:
    """Told of steps and tokens while something is generated."""

    def __init__(self, bar: Any = None, task: Any = None, title: str = "") -> None:
        self._bar, self._task, self._title = bar, task, title

    def step(self, result: Any, done: int, total: int) -> None:
        """One more step of the plan is done."""
        if self._bar is not None:
            text = shown(f"{self._title}: {result.step.target}")
            self._bar.update(self._task, completed=done, total=total, description=text)

    def token(self, done: int, most: int) -> None:
        """One more token of a text is said."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title}: token {done} of {most}")


@contextmanager
def step_progress(title: str) -> Iterator[StepProgress]:
    """A bar that goes away when the work is done."""
    if not sys.stderr.isatty():
        yield StepProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield StepProgress(bar, bar.add_task(title, total=None), title)
