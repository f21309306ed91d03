"""`fourm-lite export`: a classifier or backbone for other runtimes, compared with the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch

from fourm_lite.backbone.export import FORMS, missing_packages, report
from fourm_lite.backbone.load import is_classifier
from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_json, print_table, say
from fourm_lite.cli.words import Argument, Option
from fourm_lite.data.unread import readable
from fourm_lite.finetune.pixels import read_pixels
from fourm_lite.io.checkpoint import read
from fourm_lite.photos.labelled import Photo
from fourm_lite.photos.records import Record, read_records

RANGE_PHOTOS = 32
_ALL = ", ".join(FORMS)


def export(
    model: Annotated[str, Argument("a classifier, or any model that reads pixels")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that the files go to.")],
    forms: Annotated[
        str, Option(help=f"With commas between; by default all that can be made: {_ALL}.")
    ] = "",
    photos: Annotated[
        str, Option(help="A folder or list to compare on, and for int8's ranges; else noise.")
    ] = "",
    images: Annotated[int, Option(help="Images to compare on.", min=1)] = 64,
    batch: Annotated[int, Option(help="Images at a time, also to measure speed.", min=1)] = 8,
    threads: Annotated[int, Option(help="CPU threads; 0: as many as there are.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Export a ViT, and show how each form agrees with it and how fast it is.

    A model without a trained classifier is exported without a head: it gives its pooled features.

    Raises:
        FourMError: the model reads no pixels, or a form that was named needs a missing package
    """
    vit = _opened(model)
    if threads:
        torch.set_num_threads(threads)
    compared, others = _images(vit, photos, images)
    named = forms.split(",") if forms else _available()
    lines = report(vit, compared, forms=named, out=out, batch=batch, ranges_from=others)
    if as_json:
        left_out = () if vit.num_classes else ("top1",)
        print_json([{k: v for k, v in vars(a).items() if k not in left_out} for a in lines])
        return
    agreement = "same top-1" if vit.num_classes else "same largest feature"
    rows = [
        (a.form, f"{a.max_difference:.2g}", f"{100 * a.top1:.1f} %", f"{1000 * a.seconds:.1f}",
         f"{a.speedup:.2f}")
        for a in lines
    ]  # fmt: skip
    print_table(("form", "largest difference", agreement, "ms a batch", "speed"), rows)


def _opened(source: str) -> FMViT:
    """A classifier, or the backbone alone where no head was trained, which is said."""
    checkpoint = read(source)
    trained = is_classifier(checkpoint)
    vit = FMViT.from_pretrained(checkpoint, num_classes=None if trained else 0)
    if not vit.num_classes:
        say(
            f"{source} has no trained classifier: its features are exported; for classes see "
            "`fourm-lite finetune`",
            aside=True,
        )
    return vit


def _available() -> list[str]:
    """The forms whose packages are here; of the others it is said what they lack."""
    lacking = {form: missing for form in FORMS if (missing := missing_packages(form))}
    for form, missing in lacking.items():
        needs = f"{form} needs {' and '.join(missing)}; pip install {' '.join(missing)}"
        say(f"left out: {needs}", aside=True)
    return [form for form in FORMS if form not in lacking]


def _images(vit: FMViT, photos: str, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is compared, and other photos (spread over all) that int8 takes its ranges from."""
    if not photos:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *vit.input_size, generator=generator), None
    found = read_records(photos)
    rest = found[count:] or found
    others = rest[:: max(1, len(rest) // RANGE_PHOTOS)][:RANGE_PHOTOS]
    size = vit.input_size[1:]
    images, ranges = (
        torch.stack([read_pixels(Photo(r, ()), size) for r in _readable(part)])
        for part in (found[:count], others)
    )
    return images, ranges


def _readable(records: Sequence[Record]) -> list[Record]:
    """The photos that can be read; of the others it is told, aside."""
    good, left_out = readable(records)
    for one in left_out:
        say(f"left out: {one.uri}: {one.reason}", aside=True)
    return good
