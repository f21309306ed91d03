"""The command line: `fourm-lite VERB ...`, each verb a thin function over a public one.

To add a verb, write one plain, typed function in a file here and name it in the table
`VERBS` of `cli/app.py`:

    def info(source: str, limit: int = 10, as_json: opt.Json = None) -> None:

Its parameters are the arguments and options; those that several verbs share stand in
`cli/options.py`, here `opt`. Its docstring is the help, and the section "Args:" that of each.
A short name, a bound or a check is said in typer's words: `Annotated[int, typer.Option(min=1)]`.
All verbs are imported at the start, so their files import torch and what needs it inside the
functions, after the arguments are checked. A verb raises FourMError for what the user can mend, and
hands its result to `cli.output.deliver`; it never exits.

Unusual: three things are put right before typer reads the line, see `arranged`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fourm_lite.errors import FourMError

BAD_REQUEST = 2
"""The exit code for a request that cannot be carried out; usage errors have the same."""
_ANYWHERE = {"--debug": "debug", "--verbose": "loud", "-v": "loud", "--quiet": "quiet",
             "-q": "quiet"}  # fmt: skip
"""Options that may stand anywhere on the line."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits.

    An error that the library raised on purpose, and what the system refuses, becomes one message on
    stderr and exit code 2; `--debug`, anywhere on the line, shows where it came from instead. A
    signal that ends the process is answered by what is kept, and 128 + its number.
    """
    from fourm_lite.cli.app import build_app, kept
    from fourm_lite.cli.output import Stopped, of_system, say_error, set_loudness, stoppable

    arguments, asked = _without_flags(list(sys.argv[1:] if argv is None else argv))
    arguments = arranged(arguments)
    set_loudness(-1 if "quiet" in asked else int("loud" in asked))
    left = kept(arguments[_verb_at(arguments) :])
    try:
        with stoppable(left):
            build_app(asked=_asked(arguments)).main(args=arguments, prog_name="fourm-lite")
    except Stopped as stop:
        raise SystemExit(stop.exit_code) from None
    except (FourMError, OSError) as error:
        if "debug" in asked:
            raise
        told = error if isinstance(error, FourMError) else of_system(error, left)
        say_error(f"error: {told}")
        raise SystemExit(BAD_REQUEST) from None
    except MemoryError as error:
        if "debug" in asked:
            raise
        say_error(
            f"error: there was not enough memory{f' ({error})' if str(error) else ''}; what was "
            "written stands. Try again when other programs are done, or with smaller batches"
        )
        raise SystemExit(BAD_REQUEST) from None
    raise SystemExit(0)


def _asked(arguments: list[str]) -> list[str] | None:
    """The words that name a verb; None where the shell asks what could come next."""
    if any(name.endswith("_COMPLETE") for name in os.environ if name.startswith("_")):
        return None
    return arguments


def arranged(arguments: list[str]) -> list[str]:
    """The line as typer reads it: tools of `index`, several `--labels`, `--json` with a file."""
    start = _verb_at(arguments)
    return arguments[:start] + _with_json(_with_labels(_with_tool(arguments[start:])))


def _verb_at(arguments: list[str]) -> int:
    """Where the verb stands, behind the options of all verbs."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        place += 2 if arguments[place] == "--max-bytes" else 1
    return min(place, len(arguments))


def _with_tool(arguments: list[str]) -> list[str]:
    """`index check IDX` as one verb; a folder of that name is `index check -o IDX`.

    An index is always made with `-o`, and no tool has it: one cannot be taken for the other.
    """
    from fourm_lite.cli.app import VERBS

    tool = " ".join(arguments[:2])
    if arguments[:1] != ["index"] or len(arguments) < 2 or tool not in VERBS:
        return arguments
    if any(word == "-o" or word.split("=")[0] == "--out" for word in arguments):
        return arguments
    return [tool, *arguments[2:]]


def _with_labels(arguments: list[str]) -> list[str]:
    """`classify --labels cat dog x.jpg` as `classify --labels cat --labels dog x.jpg`.

    Words after the first end at an option, a picture's name or a file: a label that is called so
    gets a `--labels` of its own.
    """
    if arguments[:1] != ["classify"] or "--labels" not in arguments:
        return arguments
    from pathlib import Path

    from fourm_lite.modalities.pictures import SUFFIXES

    out: list[str] = []
    several = False
    for word in arguments:
        first = bool(out) and out[-1] == "--labels"
        several = first or (
            several
            and not word.startswith("-")
            and Path(word).suffix.lower() not in SUFFIXES
            and not Path(word).is_file()
        )
        out += ["--labels", word] if several and not first else [word]
    return out


def _with_json(arguments: list[str]) -> list[str]:
    """`--json` alone as `--json=-`, which prints; `--json report.json` as `--json=report.json`.

    The next word is a file where it is `-`, ends in `.json`, or stands in `evaluate`, whose verbs
    have no arguments of their own.
    """
    end = _end(arguments)
    out: list[str] = []
    words = iter(range(end))
    for place in words:
        word = arguments[place]
        if word != "--json":
            out.append(word)
            continue
        following = arguments[place + 1] if place + 1 < end else ""
        is_value = following == "-" or (
            following[:1] not in ("", "-")
            and (following.endswith(".json") or arguments[0] == "evaluate")
        )
        out.append(f"--json={following if is_value else '-'}")
        if is_value:
            next(words)
    return out + arguments[end:]


def _without_flags(arguments: list[str]) -> tuple[list[str], set[str]]:
    """The arguments without what may stand anywhere, and what of it was there."""
    end = _end(arguments)
    asked = {_ANYWHERE[word] for word in arguments[:end] if word in _ANYWHERE}
    kept = [word for word in arguments[:end] if word not in _ANYWHERE]
    return kept + arguments[end:], asked


def _end(arguments: list[str]) -> int:
    """Where `--` stands: behind it everything is an argument."""
    return arguments.index("--") if "--" in arguments else len(arguments)
