"""`fourm-lite tokenize`: labels and photos to token shards, through one or several tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option


def tokenize(
    source: Annotated[
        Path, Argument("A folder of `fourm-lite pseudolabel`; or photos: a folder, a list.")
    ],
    tokenizer: Annotated[
        list[str],
        Option(
            "--tokenizer",
            "-t",
            help="[FOLDER=]NAME_OR_PATH[#LABEL]: a shipped name or a path, perhaps with the folder "
            "that its tokens go to and the label that it reads ('photos': the pixels). Repeatable.",
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="Folder of the tokens.")],
    photos: Annotated[
        Path | None, Option("--photos", help="The photos of the labels, for tokenizers of pixels.")
    ] = None,
    split: Annotated[str | None, Option("--split", help="Of a list; without it, all.")] = None,
    crops: Annotated[
        int, Option("--crops", help="Crops a photo, where there are no labels.", min=1)
    ] = 1,
    seed: Annotated[int, Option("--seed", help="Of the crops, where there are no labels.")] = 0,
    batch_size: Annotated[int, Option("--batch-size", help="Crops at once.", min=1)] = 64,
    device: Annotated[str, Option("--device", help="Where the tokenizers run.")] = "cpu",
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Turn labels and photos into tokens, for training.

    Labels keep the crops that they were made of. Only what is missing is made, so a run that was
    stopped goes on when it is started again, and further tokenizers can be added later. Photos that
    cannot be read are left out and listed.

    Raises:
        ConfigError: the folder was begun with other crops or another tokenizer
        FourMError: a tokenizer or a label cannot be read, or no photo
    """  # fmt: skip
    from fourm_lite.data.pseudolabel import CROPS, LabelRun
    from fourm_lite.data.tokenized import parts_of_labels, parts_of_photos, tokenize_parts
    from fourm_lite.photos.records import Listing, read_listing
    from fourm_lite.training.recipe_data import open_job

    labelled = (source / CROPS).is_dir()
    jobs = [open_job(word, source if labelled else None, device=device) for word in tokenizer]
    given = photos if labelled else source
    listing = Listing(()) if given is None else read_listing(given, split=split)
    run = LabelRun(num_crops=crops, seed=seed)
    records, left_out = listing.records, list(listing.skipped)
    parts = parts_of_labels(source, records) if labelled else parts_of_photos(records, run)
    with count_progress("photos") as counts:
        seen = tokenize_parts(
            _noted(parts, left_out), jobs, out, batch_size=batch_size,
            progress=lambda done, _: counts.tell("photos", done, len(records)),
        )  # fmt: skip
    facts = {"folder": out, "photos": seen, "tokens": [job.folder for job in jobs]}
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
    else:
        folders = ", ".join(job.folder for job in jobs)
        print_facts({**facts, "tokens": folders, "left out": len(left_out) or None})
        say_left_out(left_out)


def _noted(parts: Iterable[Any], left_out: list[Any]) -> Iterator[Any]:
    """The parts; what they lack is added to the list."""
    for part in parts:
        left_out += part.left_out
        yield part
