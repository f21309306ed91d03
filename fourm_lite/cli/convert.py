"""`fourm-lite convert`: a published .pth file to safetensors; nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.words import Argument, Option
from fourm_lite.embedders.conversion import KINDS
from fourm_lite.embedders.conversion import convert as convert_source
from fourm_lite.embedders.convert import CONVERSIONS


def convert(
    file: Annotated[str, Argument("a .pth, .pt, .bin or .tsv file, or a neighbour's folder")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that is written.")],
    family: Annotated[
        str | None,
        Option("--family", help=f"{', '.join([*KINDS, *CONVERSIONS])}; found by default."),
    ] = None,
    part: Annotated[
        str | None,
        Option("--part", help="Where the weights lie, if the file holds several networks."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Turn a published file or folder into one of ours: safetensors with what belongs to it.

    Read are ImageBind's and DINOv2's files, folders of MMT-Retrieval, Oscar, UNITER and M3P,
    MobileCLIP's and TerraMind's files, and region features of detectors (.tsv, .pt, .npz).

    Raises:
        FourMError: the file needs more than tensors and plain options to be read, is damaged, or
            holds no weights or several networks
    """
    done = convert_source(file, out, family=family, part=part)
    facts = {"folder": done.folder, "family": done.family, "tensors": done.num_tensors}
    if as_json:
        print_json(facts | {"left_out": list(done.left_out), "notes": list(done.notes)})
        return
    names = ", ".join(done.left_out[:3]) + ", ..." * (len(done.left_out) > 3)
    told = f"{len(done.left_out)} tensors: {names}" if done.left_out else None
    print_facts(facts | {"left out": told, "note": "; ".join(done.notes) or None})
