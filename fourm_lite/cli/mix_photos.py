"""`fourm-lite mix-photos`: a list of mixtures of two photos each, for a teacher to label."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option


def mix_photos(
    photos: Annotated[Path, Argument("A folder of photos, a .jsonl or .parquet list.")],
    count: Annotated[int, Option("--count", help="How many mixtures.", min=1)],
    out: Annotated[Path, Option("--out", "-o", help="The list, a .jsonl file.")],
    split: Annotated[str | None, Option("--split", help="Of a list; without it, all.")] = None,
    blended: Annotated[
        float,
        Option("--blended", help="Share that is blended; the rest has a piece.", min=0.0, max=1.0),
    ] = 0.5,
    scale: Annotated[
        float, Option("--scale", help="Least area of a photo that is cut out.", min=0.01, max=1.0)
    ] = 0.35,
    seed: Annotated[int, Option("--seed", help="Of the mixtures.", min=0)] = 0,
    size: Annotated[int, Option("--size", help="Side of a mixture in pixels.", min=1)] = 224,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Mix photos, for a teacher to label.

    Two photos blended, or a piece of one in the other. No picture is written: the list names the
    photos and how they are joined, and `pseudolabel`, `tokenize` and `train` read it like a list of
    photos. Photos that cannot be read are left out and listed.

    Raises:
        ConfigError: there are fewer than two photos, or the list is there already
        FourMError: no photo can be read
    """
    from fourm_lite.data.photo_mixing import Mixing, write_mixtures
    from fourm_lite.data.unread import readable
    from fourm_lite.errors import ConfigError
    from fourm_lite.modalities.crops import CropPolicy
    from fourm_lite.photos.records import read_listing

    if out.suffix != ".jsonl":
        raise ConfigError(f"the list of mixtures is a .jsonl file, got --out {out}")
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another file, or remove it")
    listing = read_listing(photos, split=split)
    records, unread = readable(listing.records)
    left_out = [*listing.skipped, *unread]
    mixing = Mixing(CropPolicy(size=size, scale=(scale, 1.0)), blended=blended, seed=seed)
    with count_progress("mixtures") as counts:
        tell = partial(counts.tell, "mixtures")
        write_mixtures(records, out, count, mixing, split=split or "train", progress=tell)
    facts = {"list": out, "photos": len(records), "mixtures": count}
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
    else:
        print_facts({**facts, "left out": len(left_out) or None})
        say_left_out(left_out)
