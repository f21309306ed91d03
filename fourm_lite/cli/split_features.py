"""`fourm-lite split-features`: one big file of region features to one file an item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.words import Argument, Option
from fourm_lite.embedders.features import split_features as split


def split_features(
    file: Annotated[str, Argument("a .tsv of bottom-up attention, or an .npz")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that is written.")],
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Cut a file of region or grid features into one .npz an item and an index.json.

    Raises:
        FourMError: another kind of file, a row that cannot be read, or an id that comes twice
    """
    facts = {"folder": out, "items": len(split(file, out))}
    if as_json:
        print_json(facts)
        return
    print_facts(facts)
