"""The typer application, built from the table of verbs.

Unusual: what `--help` lists are stand-ins that know their one line only; a stand-in imports its
verb's module when it is asked to parse arguments.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from fourm_lite.cli.output import say
from fourm_lite.cli.verbs import GROUPS, VERBS, Verb
from fourm_lite.cli.words import Argument, Option
from fourm_lite.reading.budget import VARIABLE, parse_bytes, set_budget

if TYPE_CHECKING:
    from typer.core import TyperCommand, TyperGroup

_SECTION = re.compile(r"^[A-Z]\w+:$", re.MULTILINE)  # "Raises:" of a docstring
_HELP = {"help_option_names": ["-h", "--help"]}


def build_app(verbs: Mapping[str, Verb] = VERBS, groups: Mapping[str, str] = GROUPS) -> TyperGroup:
    """The command with all its verbs; nothing of theirs is imported yet."""
    app = _root()
    for words, verb in verbs.items():
        *group, name = words.split()
        parent = app
        for word in group:
            parent = _subgroup(parent, word, groups.get(word, ""))
        parent.add_command(_stand_in(name, verb))
    return app


def show_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    import typer

    if wanted:
        face = import_module("fourm_lite")  # the floor above: only its version is read
        say(f"fourm-lite {face.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        Option("--version", help="Print the version.", callback=show_version, is_eager=True),
    ] = False,
    # cli.main takes it off the line, wherever it stands; it is here to be listed
    debug: Annotated[bool, Option("--debug", help="Show where an error came from.")] = False,
    max_bytes: Annotated[
        str | None, Option("--max-bytes", help="Read at once of files that unpack: 4GB (1GB).")
    ] = None,
) -> None:
    """Any-to-any generation, embedding and search with 4M models."""
    asked = max_bytes or os.environ.get(VARIABLE)
    if asked:
        set_budget(bytes=parse_bytes(asked))


def _root() -> TyperGroup:
    import typer
    from typer.core import TyperGroup
    from typer.main import get_command

    app = typer.Typer(add_completion=False, context_settings=_HELP, no_args_is_help=True)
    app.callback(help=root.__doc__)(_in_typers_words(root))
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def _subgroup(parent: TyperGroup, name: str, help_text: str) -> TyperGroup:
    from typer.core import TyperGroup

    known = parent.commands.get(name)
    if isinstance(known, TyperGroup):
        return known
    group = TyperGroup(name=name, help=help_text, no_args_is_help=True, rich_markup_mode="rich")
    parent.add_command(group)
    return group


def _stand_in(name: str, verb: Verb) -> TyperCommand:
    from typer.core import TyperCommand

    class StandIn(TyperCommand):
        """A verb in a list; it becomes the real command when it is used."""

        def make_context(self, *args: Any, **kwargs: Any) -> Any:
            return _command(name, verb).make_context(*args, **kwargs)

    return StandIn(name=name, help=verb.help, rich_markup_mode="rich")


def _command(name: str, verb: Verb) -> TyperCommand:
    """The command of a verb, its module imported."""
    import typer
    from rich.markup import escape
    from typer.core import TyperCommand
    from typer.main import get_command

    module, _, function = verb.place.partition(":")
    called = getattr(import_module(module), function)
    app = typer.Typer(add_completion=False, context_settings=_HELP)
    app.command(name=name, help=escape(help_of(called) or verb.help))(_in_typers_words(called))
    command = get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def help_of(called: Callable[..., Any]) -> str:
    """The docstring of a function up to its first section."""
    text = inspect.cleandoc(called.__doc__ or "")
    section = _SECTION.search(text)
    return text[: section.start()].strip() if section else text


def _in_typers_words(called: Callable[..., None]) -> Callable[..., None]:
    """The function with `Argument` and `Option` turned into what typer reads."""

    @functools.wraps(called)
    def wrapper(**values: Any) -> None:
        called(**values)

    hints = get_type_hints(called, include_extras=True)
    parameters = inspect.signature(called).parameters.values()
    changed = [p.replace(annotation=_typer_type(hints[p.name])) for p in parameters]
    wrapper.__signature__ = inspect.Signature(changed)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in changed}
    del wrapper.__wrapped__
    return wrapper


def _typer_type(hint: Any) -> Any:
    import typer
    from rich.markup import escape

    if get_origin(hint) is not Annotated:
        return hint
    inner, *notes = get_args(hint)
    for note in notes:
        if isinstance(note, Argument):
            return Annotated[inner, typer.Argument(help=escape(note.help), **note.more)]
        if isinstance(note, Option):
            option = typer.Option(*note.names, help=escape(note.help), **note.more)
            return Annotated[inner, option]
    return hint
