"""`fourm-lite export`: a classifier or backbone for other runtimes, compared with the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch

from fourm_lite.backbone.export import FORMS, report
from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_json, print_table
from fourm_lite.cli.words import Argument, Option
from fourm_lite.training.labelled import Photo, read_labelled
from fourm_lite.training.photos import read_pixels

RANGE_PHOTOS = 16


def export(
    model: Annotated[str, Argument("a classifier, or any model that reads pixels")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that the files go to.")],
    forms: Annotated[str, Option(help="Some of the forms, with commas between.")] = ",".join(FORMS),
    photos: Annotated[
        str, Option(help="Photos to compare on, and for int8's ranges; by default noise.")
    ] = "",
    images: Annotated[int, Option(help="Images to compare on.", min=1)] = 64,
    batch: Annotated[int, Option(help="Images at a time, also to measure speed.", min=1)] = 8,
    threads: Annotated[int, Option(help="CPU threads; 0: as many as there are.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Export a ViT, and show how each form agrees with it and how fast it is.

    Raises:
        FourMError: the model reads no pixels, or a package is missing
    """
    vit = FMViT.from_pretrained(model)
    if threads:
        torch.set_num_threads(threads)
    compared, others = _images(vit, photos, images)
    lines = report(vit, compared, forms=forms.split(","), out=out, batch=batch, ranges_from=others)
    if as_json:
        print_json([vars(line) for line in lines])
        return
    rows = [
        (a.form, f"{a.max_difference:.2g}", f"{100 * a.top1:.1f} %", f"{1000 * a.seconds:.1f}",
         f"{a.speedup:.2f}")
        for a in lines
    ]  # fmt: skip
    print_table(("form", "largest difference", "same top-1", "ms a batch", "speed"), rows)


def _images(vit: FMViT, photos: str, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is compared, and other photos (spread over all) that int8 takes its ranges from."""
    if not photos:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *vit.input_size, generator=generator), None
    found: tuple[Photo, ...] = read_labelled(photos).photos
    rest = found[count:] or found
    others = rest[:: max(1, len(rest) // RANGE_PHOTOS)][:RANGE_PHOTOS]
    size = vit.input_size[1:]
    images, ranges = (
        torch.stack([read_pixels(p, size) for p in part]) for part in (found[:count], others)
    )
    return images, ranges
