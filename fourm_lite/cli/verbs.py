"""The table of verbs. A row names a function; its module is imported when the verb is used."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb's function is, as "package.module:function", and one line of help."""

    place: str
    help: str


VERBS: dict[str, Verb] = {
    "info": Verb("fourm_lite.cli.info:info", "Show what a checkpoint is and what it can do."),
    "demo": Verb("fourm_lite.cli.demo:demo", "Show everything on one page."),
    "generate": Verb(
        "fourm_lite.cli.generate:generate", "Generate any modalities from any others."
    ),
    "plan": Verb("fourm_lite.cli.plan:plan", "Show what a plan of generation does."),
}
"""Verb to function, in the order of the help. Two words make a group: "evaluate retrieval"."""

GROUPS: dict[str, str] = {}
"""One line of help for the first word of such verbs."""
