"""`fourm-lite convert`: a published .pth file to safetensors; nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.words import Argument, Option
from fourm_lite.embedders.convert import convert_pth


def convert(
    file: Annotated[str, Argument("a .pth, .pt, .bin or .ckpt file")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that is written.")],
    family: Annotated[
        str | None, Option("--family", help="imagebind, dinov2 or plain; by its keys by default.")
    ] = None,
    part: Annotated[
        str | None,
        Option("--part", help="Where the weights lie, if the file holds several networks."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Turn a .pth file into model.safetensors, for ImageBind and DINOv2 with config.json.

    Raises:
        FourMError: the file needs more than tensors and plain options to be read, is damaged, or
            holds no weights or several networks
    """
    done = convert_pth(file, out, family=family, part=part)
    facts = {"folder": done.folder, "family": done.family, "tensors": done.num_tensors}
    if as_json:
        print_json(facts | {"left_out": list(done.left_out), "notes": list(done.notes)})
        return
    names = ", ".join(done.left_out[:3]) + ", ..." * (len(done.left_out) > 3)
    told = f"{len(done.left_out)} tensors: {names}" if done.left_out else None
    print_facts(facts | {"left out": told, "note": "; ".join(done.notes) or None})
