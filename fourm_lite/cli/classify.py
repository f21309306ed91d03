"""`fourm-lite classify`: what is on a photo, by a classifier that was made here."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_json, print_table
from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import FourMError
from fourm_lite.training.photos import one_photo, read_pixels


def classify(
    photos: Annotated[list[str], Argument("picture files")],
    model: Annotated[str, Option("--model", "-m", help="The folder of a classifier.")],
    top: Annotated[int, Option("--top", help="Classes to show.", min=1)] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Show the most probable classes of photos.

    A photo that cannot be read is listed with the reason; if none can be read, that is an error.

    Raises:
        FourMError: no photo can be read, or the model has no head
    """
    vit = classifier(model)
    results = [classified(vit, photo, top) for photo in photos]
    if all("error" in result for result in results):
        raise FourMError("; ".join(str(result["error"]) for result in results))
    if as_json:
        print_json(results)
        return
    for result in results:
        print(result["photo"] + (f": {result['error']}" if "error" in result else ""))
        rows = [(c["label"], f"{c['probability']:.4f}") for c in result.get("top", [])]
        if rows:
            print_table(("class", "probability"), rows)


def classifier(source: str) -> FMViT:
    """A model with a trained head.

    Raises:
        FourMError: the checkpoint is a model without one
    """
    from fourm_lite.backbone.load import is_classifier
    from fourm_lite.io.checkpoint import read

    checkpoint = read(source)
    if not is_classifier(checkpoint):
        raise FourMError(
            f"{source} has no trained classifier; make one with "
            f"`fourm-lite finetune DATA --model {source} --out DIR` and give that folder"
        )
    vit = FMViT.from_pretrained(source)
    if not vit.num_classes:
        raise FourMError(f"{source} is a backbone without classes; see `fourm-lite finetune`")
    return vit


@torch.inference_mode()
def classified(vit: FMViT, photo: str, top: int) -> dict[str, Any]:
    """The most probable classes of one photo, or why it cannot be read."""
    try:
        pixels = read_pixels(one_photo(photo), vit.input_size[1:])
    except FourMError as error:
        return {"photo": photo, "error": str(error)}
    chances = vit.probabilities(vit(pixels[None]))[0]
    values, numbers = chances.topk(min(top, len(chances)))
    head = vit.config.head
    found = [
        {"label": head.name_of(n), "index": n, "probability": p}
        for n, p in zip(numbers.tolist(), values.tolist(), strict=True)
    ]
    return {"photo": photo, "label": found[0]["label"], "top": found}
