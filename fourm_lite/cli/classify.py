"""`fourm-lite classify`: what is on a photo, by a classifier that was made here or by words."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_json, print_table, say
from fourm_lite.cli.search_options import Device, Target, Texts, TextTokenizer, Tokenizers
from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.pixels import one_photo, read_pixels


def classify(
    photos: Annotated[list[str], Argument("picture files")],
    model: Annotated[
        str, Option("--model", "-m", help="A classifier's folder; with --labels mini, hf:..., ...")
    ],
    labels: Annotated[
        Texts, Option("--labels", help="Classes in words, or LABEL=NAME|NAME.")
    ] = None,
    templates: Annotated[
        Texts, Option("--template", help="'a photo of a {}'. Repeatable, averaged.")
    ] = None,
    by: Annotated[
        str | None, Option("--by", help="Of a 4M model with --labels: embedding or likelihood.")
    ] = None,
    temperature: Annotated[
        float | None, Option("--temperature", help="Of the softmax over --labels.")
    ] = None,
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    device: Device = None,
    top: Annotated[int, Option("--top", help="Classes to show.", min=1)] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Show the most probable classes of photos: trained ones, or any words (--labels).

    A photo that cannot be read is listed with the reason; if none can be read, that is an error.

    Raises:
        FourMError: no photo can be read, the model has no head, or it cannot judge words
    """
    words = {
        "templates": templates, "by": by, "temperature": temperature, "target": target,
        "tokenizers": tokenizers, "text_tokenizer": text_tokenizer, "device": device,
    }  # fmt: skip
    if labels:
        from fourm_lite.cli.classify_words import by_words

        results = by_words(model, photos, labels, top, **words)  # type: ignore[arg-type]
    else:
        given = [name for name, value in words.items() if value is not None]
        if given:
            raise ConfigError(f"{_option(given[0])} needs --labels, the classes in words")
        vit = classifier(model)
        results = [classified(vit, photo, top) for photo in photos]
    if all("error" in result for result in results):
        raise FourMError("; ".join(str(result["error"]) for result in results))
    if as_json:
        print_json(results)
        return
    for result in results:
        say(result["photo"] + (f": {result['error']}" if "error" in result else ""))
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
            f"`fourm-lite finetune DATA --model {source} --out DIR` and give that folder, or name "
            "the classes in words: --labels 'a cat' --labels 'a dog'"
        )
    vit = FMViT.from_pretrained(checkpoint)
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


def _option(parameter: str) -> str:
    return "--template" if parameter == "templates" else f"--{parameter.replace('_', '-')}"
