"""How a verb describes its arguments and options, without importing typer."""

from __future__ import annotations

from typing import Any


class Argument:
    """An argument that stands by its place; use it in `Annotated`.

    `more` goes to `typer.Argument`: metavar, min, max, ...
    """

    def __init__(self, help: str, **more: Any) -> None:
        self.help, self.more = help, more


class Option:
    """An option with its names; without names it is called like the parameter.

    `more` goes to `typer.Option`: metavar, min, max, show_default, ...
    """

    def __init__(self, *names: str, help: str, **more: Any) -> None:
        self.names, self.help, self.more = names, help, more
