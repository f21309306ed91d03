"""`fourm-lite classify`: what is on a photo, by a classifier that was made here or by words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli.options import (
    Device,
    Json,
    Target,
    Texts,
    TextTokenizer,
    Tokenizers,
)
from fourm_lite.cli.output import deliver, print_table, say
from fourm_lite.errors import ConfigError, FourMError

if TYPE_CHECKING:
    from fourm_lite.backbone.vit import FMViT


def classify(
    photos: Annotated[list[str], typer.Argument(help="The picture files to classify.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m",
            help="Use this classifier's folder; with --labels any 4M model or dual encoder, such "
            "as mini or hf:FOLDER_OR_ID.",
        ),
    ],
    labels: Annotated[
        Texts,
        typer.Option(
            "--labels",
            help="Tell these classes apart, which are named in words; LABEL=NAME|NAME gives one "
            "several names. May be repeated.",
        ),
    ] = None,
    templates: Annotated[
        Texts,
        typer.Option(
            "--template",
            help="Put each class into this sentence, such as 'a photo of a {}'. May be repeated; "
            "then the sentences are averaged.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="Compare photos with --labels by a 4M model's 'embedding' or by the "
            "'likelihood' of the words.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="Divide the scores of --labels by this before the softmax."
        ),
    ] = None,
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    device: Device = None,
    top: Annotated[
        int, typer.Option("--top", help="Show this many of the most probable classes.", min=1)
    ] = 5,
    as_json: Json = None,
) -> None:  # fmt: skip
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
        from fourm_lite.evaluate.zero_shot import classify_by_words

        results = classify_by_words(model, photos, labels, top, **words)  # type: ignore[arg-type]
    else:
        given = [name for name, value in words.items() if value is not None]
        if given:
            raise ConfigError(f"{_option(given[0])} needs --labels, the classes in words")
        results = _by_classifier(model, photos, top)
    if all("error" in result for result in results):
        raise FourMError("; ".join(str(result["error"]) for result in results))
    deliver(results, as_json, lambda: _show(results))


def _show(results: list[dict[str, Any]]) -> None:
    for result in results:
        say(result["photo"] + (f": {result['error']}" if "error" in result else ""))
        rows = [(c["label"], f"{c['probability']:.4f}") for c in result.get("top", [])]
        if rows:
            print_table(("class", "probability"), rows)


def _by_classifier(model: str, photos: list[str], top: int) -> list[dict[str, Any]]:
    import torch

    with torch.inference_mode():
        vit = classifier(model)
        return [classified(vit, photo, top) for photo in photos]


def classifier(source: str) -> FMViT:
    """A model with a trained head.

    Raises:
        FourMError: the checkpoint is a model without one
    """
    from fourm_lite.backbone.load import is_classifier
    from fourm_lite.backbone.vit import FMViT
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


def classified(vit: FMViT, photo: str, top: int) -> dict[str, Any]:
    """The most probable classes of one photo, or why it cannot be read."""
    from fourm_lite.finetune.pixels import one_photo, read_pixels

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
