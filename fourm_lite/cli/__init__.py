"""The command line: `fourm-lite VERB ...`, each verb a thin function over a public one.

To add a verb, write `fourm_lite/cli/VERB.py` with one plain, typed function, and a row in
`fourm_lite/cli/verbs.py` that names it. The function's parameters are the arguments and options:

    def info(
        source: Annotated[str, Argument("a folder, a file, a shipped name or a hub id")],
        as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
    ) -> None:
        \"\"\"What a checkpoint is.\"\"\"

`Argument` and `Option` come from `cli.words`; the first paragraph of the docstring is the help. The
module is imported only when its verb is used, so it may import torch at its top. It raises
FourMError for what the user can mend, and prints results with `cli.output`; it never exits.

Unusual: this file imports neither typer nor torch before a command runs, so `fourm-lite --help` is
quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from fourm_lite.errors import FourMError

BAD_REQUEST = 2
"""The exit code for a request that cannot be carried out; usage errors have the same."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits.

    An error that the library raised on purpose, and what the system refuses, becomes one message on
    stderr and exit code 2; `--debug`, anywhere on the line, shows where it came from instead. A
    signal that ends the process is answered by what is kept, and 128 + its number.
    """
    from fourm_lite.cli.app import build_app
    from fourm_lite.cli.output import quiet_warnings, say
    from fourm_lite.cli.stop import Stopped, kept, of_system, stoppable

    arguments, debug = _without_debug(list(sys.argv[1:] if argv is None else argv))
    arguments = _with_labels(_with_tool(arguments))
    quiet_warnings()
    left = kept(arguments)
    try:
        with stoppable(left):
            build_app().main(args=arguments, prog_name="fourm-lite")
    except Stopped as stop:
        raise SystemExit(stop.exit_code) from None
    except (FourMError, OSError) as error:
        if debug:
            raise
        told = error if isinstance(error, FourMError) else of_system(error, left)
        say(f"error: {told}", aside=True, keep="\n")
        raise SystemExit(BAD_REQUEST) from None
    except MemoryError as error:
        if debug:
            raise
        say(
            f"error: there was not enough memory{f' ({error})' if str(error) else ''}; what was "
            "written stands. Try again when other programs are done, or with smaller batches",
            aside=True,
        )
        raise SystemExit(BAD_REQUEST) from None
    raise SystemExit(0)


def _with_tool(arguments: list[str]) -> list[str]:
    """`index check IDX` as `index-check IDX`; a folder of that name is `index check -o IDX`.

    An index is always made with `-o`, and no tool has it: one cannot be taken for the other.
    """
    from fourm_lite.cli.verbs import TOOLS

    if arguments[:1] != ["index"] or len(arguments) < 2 or arguments[1] not in TOOLS:
        return arguments
    if any(word == "-o" or word.split("=")[0] == "--out" for word in arguments):
        return arguments
    return [f"index-{arguments[1]}", *arguments[2:]]


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


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, and whether it was there; nothing changes after `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return kept + arguments[end:], len(kept) < end
