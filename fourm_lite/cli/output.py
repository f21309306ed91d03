"""How verbs print: results to stdout, as JSON or for people; notes and progress to stderr.

Files that a verb shall write are checked before its work; when a signal (SIGTERM, Ctrl-C) or the
disk stops it, it says what is kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import ConfigError, StorageError
from fourm_lite.io.files import storage_error, write_whole
from fourm_lite.names import shown

if TYPE_CHECKING:
    from fourm_lite.photos.item import Skipped

BETWEEN, NARROWEST = 3, 8
"""Letters between two columns, and in the narrowest one that is worth showing."""
EVERY = 15.0
"""Seconds between two lines of progress where there is no bar."""
_loudness = 0
"""Below 0: only results and errors; above 0: what the library notes on the way, too."""


def require_folder(folder: Path, option: str) -> None:
    """Refuses a folder that is none, or that cannot be made.

    Raises:
        ConfigError: a file is in the way, or nothing may be written there
    """
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"{option} cannot be written to {folder}: {there} {why}; name another")


def require_model_folder(model: Path) -> None:
    """Refuses a name: what is fitted for a model is written beside its weights.

    Raises:
        ConfigError: the model is no folder
    """
    if not model.is_dir():
        raise ConfigError(
            f"the file is written beside the weights, so --model must be a folder, '{model}' is "
            "none; copy a shipped or downloaded model into a folder of your own first"
        )


def require_file(file: str | Path | None, option: str) -> None:
    """Refuses a file that cannot be written; none at all and `-`, which prints, are not checked.

    Raises:
        ConfigError: a folder is in the way, or nothing may be written there
    """
    if not file or str(file) == "-":
        return
    file = Path(file)
    if file.is_dir():
        raise ConfigError(f"{option} expects the name of a file, {file} is a folder")
    if file.exists() and not os.access(file, os.W_OK):
        raise ConfigError(f"{option} may not write to {file}; name another file")
    require_folder(file.parent, option)


def say(text: object, *, aside: bool = False, keep: str = "") -> None:
    """A line for people, with nothing in it that a terminal would obey.

    Args:
        text: names, captions and ids may be anything; a line break in them is spelled out
        aside: a note on stderr, which `--quiet` leaves out
        keep: characters that stay as they are, such as line breaks
    """
    if not (aside and _loudness < 0):
        print(shown(text, keep=keep), file=sys.stderr if aside else sys.stdout, flush=aside)


def say_error(text: object) -> None:
    """Why a command failed, on stderr; `--quiet` does not silence it."""
    print(shown(text, keep="\n"), file=sys.stderr, flush=True)


class _Printable(logging.Formatter):
    """Warnings as a terminal may show them; they name files."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with its line breaks."""
        return shown(super().format(record), keep="\n")


def set_loudness(loudness: int) -> None:
    """How much is written to stderr: -1 errors alone, 0 warnings and progress, 1 everything.

    Warnings of the library go to stderr and bring no escape sequences there.
    """
    global _loudness
    _loudness = loudness
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())
    log = logging.getLogger("fourm_lite")
    log.setLevel({-1: logging.ERROR, 0: logging.NOTSET, 1: logging.DEBUG}[loudness])
    for handler in [h for h in log.handlers if isinstance(h.formatter, _Printable)]:
        log.removeHandler(handler)
    if loudness > 0:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(name)s: %(message)s"))
        log.addHandler(handler)


def print_json(value: Any) -> None:
    """One JSON value; what JSON has no word for (a path) is printed as text.

    Letters that a terminal would obey are written as JSON writes control characters.
    """
    text = json.dumps(value, indent=2, default=str, ensure_ascii=False, allow_nan=False)
    print("".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text))


def _escaped(letter: str) -> str:
    return json.dumps(letter)[1:-1] if letter != "\x7f" else "\\u007f"


def print_facts(facts: Mapping[str, Any]) -> None:
    """A line a fact, the names aligned; facts that are None are left out."""
    known = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        say(f"{name.ljust(width)}  {value}")


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    whole: int | None = None,
    ends: Collection[str] = (),
) -> None:
    """A table as wide as the terminal allows; with `whole`, one line a row.

    Args:
        head: names of the columns
        rows: the cells
        whole: so many columns from the left are shown whole, the others cut to what is left
        ends: columns that are cut at their beginning, such as paths
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console = Console()
    texts = [[shown(cell) for cell in row] for row in rows]
    names = [shown(name) for name in head]
    if whole is not None:
        cut = [_end_of if name in ends else _start_of for name in head]
        names, *texts = _one_line([names, *texts], whole, console.width, cut)
    table = Table(*map(escape, names), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in texts:
        table.add_row(*map(Text, row))  # Text: brackets are no markup
    console.print(table)


Cut = Callable[[str, int], str]


def _one_line(
    rows: Sequence[Sequence[str]], whole: int, width: int, cut: Sequence[Cut]
) -> list[list[str]]:
    """The rows cut to a width: some columns whole, the others share the rest or are left out."""
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(least + BETWEEN for least in longest[:whole])
    shares: list[int] = []
    for place in range(whole, len(longest)):
        left = len(longest) - place
        share = min(longest[place], max(NARROWEST, room // left - BETWEEN))
        if share + BETWEEN > room:
            break
        shares.append(share)
        room -= share + BETWEEN
    limits = [*longest[:whole], *shares]
    return [
        [short(" ".join(cell.split()), n) for cell, n, short in zip(row, limits, cut, strict=False)]
        for row in rows
    ]


def _start_of(line: str, limit: int) -> str:
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _end_of(line: str, limit: int) -> str:
    return line if len(line) <= limit else "…" + line[1 - limit :]


def deliver(value: Any, to: str | None, show: Callable[[], None]) -> None:
    """The result of a verb, as `--json` asks for it: the same in all verbs.

    Args:
        value: the result, for programs
        to: None shows it to people; `-` prints one JSON value alone; else the JSON goes to that
            file, and people are shown the usual text
        show: prints it for people
    """
    if to == "-":
        print_json(value)
        return
    if to is not None:
        text = json.dumps(value, indent=2, default=str, ensure_ascii=False, allow_nan=False)
        write_whole(to, text + "\n")
    show()


def deliver_some(
    facts: Mapping[str, Any], left_out: Sequence[Skipped], to: str | None, **shown: Any
) -> None:
    """The facts of a verb that leaves out what it cannot read, and what that is with the reasons.

    Args:
        facts: the result
        left_out: of the sources
        to: as `deliver`
        shown: facts as people are shown them, in place of those of the same names
    """

    def show() -> None:
        print_facts({**facts, **shown, "left out": len(left_out) or None})
        for one in left_out:
            say(f"left out: {one.uri}: {one.reason}")

    listed = [{"uri": one.uri, "reason": one.reason} for one in left_out]
    deliver({**facts, "left_out": listed}, to, show)


class Told:
    """Progress for people: silent by itself; its kinds show it."""

    is_shown = False

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """So much of something is done; a total of 0 is not known."""

    def of(self, what: str) -> Callable[[int, int], None]:
        """The progress of one kind of work, which the library's functions take."""
        return lambda done, total: self.tell(what, done, total)

    def step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None:
        """So many steps of a training are done, with these losses."""
        losses = "  ".join(f"{k} {v:.3f}" for k, v in numbers.items() if k.startswith("loss"))
        self.tell("steps", step, steps, losses)


class _Bar(Told):
    """A bar at a terminal."""

    is_shown = True

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task, self._what = bar, task, ""

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """Draws it; a new kind of work begins a new clock."""
        what, note = shown(what), shown(note)
        if what != self._what:
            self._what = what
            self._bar.reset(self._task, description=what, total=total or None, note=note)
        self._bar.update(
            self._task, description=what, completed=done, total=total or None, note=note
        )


class _Lines(Told):
    """A line now and then in a file of messages, for work that takes long."""

    is_shown = True

    def __init__(self, *, stages: bool) -> None:
        self._stages, self._what = stages, ""
        self._begun = self._last = time.monotonic()
        self._first = 0

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """Says it if a while has passed since the last line, or a new kind of work begins."""
        now = time.monotonic()
        is_new, self._what = what != self._what, what
        if is_new:  # what an earlier run did is counted and took no time of this one
            self._begun, self._first = now, done
        ends = self._stages and total and done == total
        if not (is_new and self._stages) and not ends and now - self._last < EVERY:
            return
        self._last = now
        count = f" {done} of {total}" if total else (f" {done}" if done else "")
        say(", ".join([what + count, *self._left(done, total, now), *([note] * bool(note))]),
            aside=True)  # fmt: skip

    def _left(self, done: int, total: int, now: float) -> list[str]:
        if not total or not self._first < done < total or now - self._begun < 1:
            return []
        seconds = (now - self._begun) / (done - self._first) * (total - done)
        return [f"about {timedelta(seconds=round(seconds))} left"]


@contextmanager
def progress(title: str, *, stages: bool = False) -> Iterator[Told]:
    """Shows on stderr how far the work is, with the total and the time that is left.

    At a terminal it is a bar that goes away at the end; else a line every few seconds.

    Args:
        title: what is counted
        stages: whether each new kind of work has a line of its own where nobody sees a bar
    """
    if _loudness < 0:
        yield Told()
        return
    if not sys.stderr.isatty():
        yield _Lines(stages=stages or _loudness > 0)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False), bars.BarColumn(),
        bars.MofNCompleteColumn(), bars.TextColumn("{task.fields[note]}", markup=False),
        bars.TimeElapsedColumn(), bars.TextColumn("left"), bars.TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task(title, total=None, note=""))


class Stopped(BaseException):
    """Raised in the main thread by a signal, so that drafts are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable(left: str) -> Iterator[None]:
    """Says at once what is kept when a signal comes, and raises `Stopped`; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        say(f"stopped by {signal.Signals(number).name}: {left}", aside=True)
        raise Stopped(number)

    for asked in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(asked) is not signal.SIG_IGN:  # nohup and its like stay in force
            before[asked] = signal.signal(asked, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def of_system(error: OSError, left: str) -> StorageError:
    """What the system refused, in a sentence that says what is kept."""
    place = f" {error.filename}" if error.filename else ""
    return storage_error(f"the system refused{place}", error, left)
