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


def export(
    model: Annotated[str, Argument("a classifier, or any model that reads pixels")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that the files go to.")],
    forms: Annotated[str, Option(help="Some of the forms, with commas between.")] = ",".join(FORMS),
    photos: Annotated[str, Option(help="Photos to compare on; by default noise.")] = "",
    batch: Annotated[int, Option(help="Images to compare on.", min=1)] = 8,
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
    lines = report(vit, _images(vit, photos, batch), forms=forms.split(","), out=out)
    if as_json:
        print_json([vars(line) for line in lines])
        return
    rows = [
        (a.form, f"{a.max_difference:.2g}", f"{100 * a.top1:.1f} %", f"{1000 * a.seconds:.1f}",
         f"{a.speedup:.2f}")
        for a in lines
    ]  # fmt: skip
    print_table(("form", "largest difference", "same top-1", "ms a batch", "speed"), rows)


def _images(vit: FMViT, photos: str, batch: int) -> torch.Tensor:
    if not photos:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *vit.input_size, generator=generator)
    chosen: tuple[Photo, ...] = read_labelled(photos).photos[:batch]
    return torch.stack([read_pixels(photo, vit.input_size[1:]) for photo in chosen])
