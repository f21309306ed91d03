"""`fourm-lite plan`: what a plan of generation does, before it is run."""

from __future__ import annotations

from typing import Annotated

from fourm_lite.cli.output import say
from fourm_lite.cli.words import Argument


def plan(
    source: Annotated[str, Argument('a TOML file, or the name of a shipped plan: "rgb2all"')],
) -> None:
    """Show the targets of a plan in order, and how each is decoded.

    Raises:
        ConfigError: the plan cannot be read
    """
    from fourm_lite.sampling.plan import Plan

    say(Plan.from_toml(source), keep="\n")
