"""How verbs print results: JSON for programs, lines and tables for people; both to stdout.

Files that a verb shall write are checked before its work.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import ConfigError
from fourm_lite.names import shown

if TYPE_CHECKING:
    from fourm_lite.photos.item import Skipped

BETWEEN, NARROWEST = 3, 8
"""Letters between two columns, and in the narrowest one that is worth showing."""


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
    """Refuses a name: what is learnt about a model is written beside its weights.

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
        aside: on stderr
        keep: characters that stay as they are, such as line breaks
    """
    print(shown(text, keep=keep), file=sys.stderr if aside else sys.stdout, flush=aside)


class _Printable(logging.Formatter):
    """Warnings as a terminal may show them; they name files."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with its line breaks."""
        return shown(super().format(record), keep="\n")


def quiet_warnings() -> None:
    """Warnings of the library, which go to stderr, bring no escape sequences there."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())


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
    head: Sequence[str], rows: Iterable[Sequence[Any]], *, whole: int | None = None
) -> None:
    """A table as wide as the terminal allows; with `whole`, one line a row.

    Args:
        head: names of the columns
        rows: the cells
        whole: so many columns from the left are shown whole, the others cut to what is left
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
        names, *texts = _one_line([names, *texts], whole, console.width)
    table = Table(*map(escape, names), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in texts:
        table.add_row(*map(Text, row))  # Text: brackets are no markup
    console.print(table)


def _one_line(rows: Sequence[Sequence[str]], whole: int, width: int) -> list[list[str]]:
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
    return [[_cut(cell, limit) for cell, limit in zip(row, limits, strict=False)] for row in rows]


def _cut(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def left_out_facts(skipped: Iterable[Skipped]) -> list[dict[str, str]]:
    """What was left out of a source, for JSON."""
    return [{"uri": one.uri, "reason": one.reason} for one in skipped]


def say_left_out(skipped: Sequence[Skipped]) -> None:
    """What was left out of a source, a line each, for people."""
    for one in skipped:
        say(f"left out: {one.uri}: {one.reason}")
