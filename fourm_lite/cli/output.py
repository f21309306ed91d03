"""How verbs print results: JSON for programs, lines and tables for people; both to stdout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value; what JSON has no word for (a path) is printed as text."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False, allow_nan=False))


def print_facts(facts: Mapping[str, Any]) -> None:
    """A line a fact, the names aligned; facts that are None are left out."""
    known = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        print(f"{name.ljust(width)}  {value}")


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a line a row, as wide as the terminal allows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: brackets are no markup
    Console().print(table)
