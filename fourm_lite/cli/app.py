"""The command line as a table of functions: `VERBS` names every verb."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fourm_lite.cli import (
    classify,
    evaluate,
    evaluate_classes,
    finetune,
    generate,
    index,
    models,
    prepare,
    pseudolabel,
    search,
    serve,
    train,
)
from fourm_lite.cli.output import say
from fourm_lite.reading.regular import VARIABLE, parse_bytes, set_budget

if TYPE_CHECKING:
    from typer.core import TyperGroup

NOTHING = "files that it had finished are whole, what was there before is unchanged"
_SHARDS = "finished shards are kept, and the same command goes on after them"
_CHECKPOINTS = "the last checkpoint is kept, and the same command goes on from it with --resume"
_SECTION = re.compile(r"^[A-Z]\w+:$", re.MULTILINE)  # "Raises:" of a docstring
_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


class Verb(NamedTuple):
    """A function that is a verb; its docstring is the help, also of its arguments.

    `kept` is what it leaves when it is stopped before its end; "" for whole files alone.
    """

    run: Callable[..., None]
    kept: str = ""


VERBS: dict[str, Verb] = {
    "demo": Verb(models.demo),
    "search": Verb(search.search),
    "serve": Verb(serve.serve, "nothing was lost, a server keeps nothing"),
    "index": Verb(
        index.index,
        "photos that were committed are kept, and the same command goes on after them",
    ),
    "index info": Verb(index.index_info),
    "index build": Verb(index.index_build),
    "index check": Verb(index.index_check),
    "index compact": Verb(index.index_compact),
    "index calibrate": Verb(index.index_calibrate),
    "embed": Verb(
        prepare.embed,
        "vectors that were made are kept, and the same command goes on after them",
    ),
    "generate": Verb(
        generate.generate,
        "finished items are kept, and the same command goes on after them if it has --items",
    ),
    "plan": Verb(generate.plan),
    "classify": Verb(classify.classify),
    "export": Verb(classify.export),
    "finetune": Verb(finetune.finetune, _CHECKPOINTS),
    "train": Verb(train.train, _CHECKPOINTS),
    "add-embedding": Verb(
        train.add_embedding,
        "finished stages and the last checkpoint are kept, and the same command goes on",
    ),
    "pseudolabel": Verb(pseudolabel.pseudolabel, _SHARDS),
    "tokenize": Verb(prepare.tokenize, _SHARDS),
    "mix-photos": Verb(prepare.mix_photos),
    "split-features": Verb(prepare.split_features),
    "name-classes": Verb(prepare.name_classes),
    "calibrate": Verb(finetune.calibrate),
    "spread": Verb(finetune.spread),
    "info": Verb(models.info),
    "download": Verb(models.download),
    "push": Verb(models.push),
    "convert": Verb(models.convert),
    "evaluate retrieval": Verb(evaluate.retrieval),
    "evaluate same-class": Verb(evaluate.same_class),
    "evaluate steps": Verb(evaluate.steps),
    "evaluate zeroshot": Verb(evaluate_classes.zeroshot),
    "evaluate knn": Verb(evaluate_classes.knn),
    "evaluate probe": Verb(evaluate_classes.probe),
    "evaluate fewshot": Verb(evaluate_classes.fewshot),
    "evaluate any2any": Verb(evaluate.any2any),
    "evaluate tokenizers": Verb(evaluate.tokenizers),
}
"""Verb to function, in the order of the help. "evaluate x" is a verb of a group; "index x" is a
verb beside "index", which has arguments of its own: `with_tool` tells them apart."""

GROUPS = {"evaluate": "Measure a model on data."}
"""One line of help for the first word of verbs in a group."""


def build_app(verbs: Mapping[str, Verb] = VERBS, asked: Sequence[str] | None = None) -> TyperGroup:
    """The command with all its verbs.

    Args:
        verbs: the table
        asked: the words of a command line: only the verb that they name gets its options, which
            is a tenth of a second quicker; None for all verbs
    """
    from typer.core import TyperGroup
    from typer.main import get_command

    app = typer.Typer(
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        no_args_is_help=True,
        rich_markup_mode=None,  # brackets in help are brackets
    )
    app.callback(help=root.__doc__)(root)
    groups = {
        name: typer.Typer(help=line, no_args_is_help=True, rich_markup_mode=None)
        for name, line in GROUPS.items()
    }
    for words, verb in verbs.items():
        first, _, second = words.partition(" ")
        parent, name = (groups[first], second) if first in groups else (app, words)
        former = name.replace(" ", "-")
        is_asked = asked is None or not {first, former, words}.isdisjoint(asked)
        run = verb.run if is_asked else _listed
        text = help_of(verb.run)
        parent.command(name, help=text, short_help=text.split("\n")[0])(run)
        if former != name:
            app.command(former, help=text, hidden=True)(run)
    for name, group in groups.items():
        app.add_typer(group, name=name)
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    for words, verb in verbs.items():
        _document(command, words, verb.run)
    return command


def _document(command: Any, words: str, run: Callable[..., Any]) -> None:
    """Gives a verb's arguments the help that stands under "Args:" in its docstring."""
    first, _, second = words.partition(" ")
    inner, names = command.commands, {words, words.replace(" ", "-")}
    if first in GROUPS:
        inner, names = command.commands[first].commands, {second}
    told = arguments_of_docstring(run)
    for param in (param for name in names for param in inner[name].params):
        param.help = param.help or told.get(param.name)
        if param.param_type_name == "argument":  # PHOTOS, as the errors call it
            param.metavar = param.metavar or param.name.upper()


def _listed() -> None:
    """Stands for a verb that is not asked for."""


def show_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    if wanted:
        face = import_module("fourm_lite")  # the floor above: only its version is read
        say(f"fourm-lite {face.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", callback=show_version, is_eager=True
        ),
    ] = False,
    # cli.main takes these three off the line, wherever they stand; they are here to be listed
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print the notes of the library.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results and errors.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error came from.")
    ] = False,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes", help="Read at most this much at once of files that unpack; 1GB is usual."
        ),
    ] = None,
) -> None:
    """Any-to-any generation, embedding and search with 4M models.

    All verbs that end with a result take --json: it prints the result as one JSON value and nothing
    else on stdout; with a file name after it, the value is written there.
    """
    asked = max_bytes or os.environ.get(VARIABLE)
    if asked:
        set_budget(bytes=parse_bytes(asked))


def help_of(called: Callable[..., Any]) -> str:
    """The docstring of a function up to its first section."""
    text = inspect.cleandoc(called.__doc__ or "")
    section = _SECTION.search(text)
    return text[: section.start()].strip() if section else text


def arguments_of_docstring(called: Callable[..., Any]) -> dict[str, str]:
    """What the section "Args:" of a function's docstring says of each argument."""
    text = inspect.cleandoc(called.__doc__ or "").partition("\nArgs:\n")[2]
    section = _SECTION.split(text)[0]
    return {name: " ".join(told.split()) for name, told in _ARGUMENT.findall(section)}


def kept(arguments: Sequence[str], verbs: Mapping[str, Verb] = VERBS) -> str:
    """What a verb that ends before its time leaves, by the words of its command line."""
    for count in (2, 1):
        verb = verbs.get(" ".join(arguments[:count]))
        if verb is not None:
            return verb.kept or NOTHING
    return NOTHING
