"""Counts on stderr while much is done, for people at a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fourm_lite.names import shown


class Counts:
    """Told of what is done; draws nothing where nobody looks."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """So much of something is done; a total of 0 is not known."""
        if self._bar is not None:
            self._bar.update(
                self._task, description=shown(what), completed=done, total=total or None, note=note
            )


@contextmanager
def count_progress(title: str) -> Iterator[Counts]:
    """A line with counts that goes away when the work is done."""
    if not sys.stderr.isatty():
        yield Counts()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Counts(bar, bar.add_task(title, total=None, note=""))
