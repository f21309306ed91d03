"""`fourm-lite classify`, `export`: what is on a photo, and classifiers for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import present, tell_precision
from fourm_lite.cli.output import deliver, print_table, progress, require_folder, say
from fourm_lite.errors import ConfigError, FourMError

if TYPE_CHECKING:
    from torch import Tensor

    from fourm_lite.backbone.vit import FMViT
    from fourm_lite.photos.records import Record

AMONG = "these probabilities compare the given labels; one is always first, even if none fits"
RANGE_PHOTOS = 32
"""Photos that int8 takes the ranges of its values from."""


def classify(
    photos: list[str],
    model: Annotated[str, typer.Option("--model", "-m")],
    labels: opt.Texts = None,
    templates: Annotated[opt.Texts, typer.Option("--template")] = None,
    by: str | None = None,
    temperature: float | None = None,
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    top: Annotated[int, typer.Option(min=1)] = 5,
    as_json: opt.Json = None,
) -> None:
    """Show the most probable classes of photos: trained ones, or any words (--labels).

    A photo that cannot be read is listed with the reason; if none can be read, that is an error.

    Args:
        photos: The picture files to classify.
        model: Use this classifier's folder; with --labels any 4M model or dual encoder, such as
            mini or hf:FOLDER_OR_ID.
        labels: Choose among these classes, which are named in words, one --labels for each;
            LABEL=NAME|NAME gives one several names.
        templates: Put each class into this sentence, such as 'a photo of a {}'. May be repeated;
            then the sentences are averaged.
        by: Compare photos with --labels by a 4M model's 'embedding' or by the 'likelihood' of the
            words.
        temperature: Divide the scores of --labels by this before the softmax.
        top: Show this many of the most probable classes.

    Raises:
        FourMError: no photo can be read, the model has no head, or it cannot judge words
    """
    words = {
        "templates": templates, "by": by, "temperature": temperature, "target": target,
        "tokenizers": tokenizers, "text_tokenizer": text_tokenizer, "device": device,
    }  # fmt: skip
    _require_photos(photos)
    tell_precision(dtype, model, device)
    if labels:
        from fourm_lite.evaluate.zero_shot import classify_by_words

        with progress("photos") as told:
            results = classify_by_words(
                model,
                photos,
                labels,
                top,
                progress=told.of("photos"),
                dtype=dtype,
                **words,  # type: ignore[arg-type]
            )
    else:
        given = [name for name, value in words.items() if value is not None]
        if given:
            raise ConfigError(f"{_option(given[0])} needs --labels, the classes in words")
        results = _by_classifier(model, photos, top, dtype)
    if all("error" in result for result in results):
        raise FourMError("; ".join(str(result["error"]) for result in results))
    if labels:
        say(AMONG, aside=True)
    deliver(results, as_json, lambda: _show(results))


def _require_photos(photos: Sequence[str]) -> None:
    """Refuses photos of which none is there, before a model is opened.

    Raises:
        ConfigError: there is none at any of the paths
    """
    from fourm_lite.reading.remote import is_remote

    if not any(is_remote(photo) or Path(photo).expanduser().exists() for photo in photos):
        raise ConfigError(f"there is no photo at {', '.join(photos)}; check its folder and name")


def _show(results: list[dict[str, Any]]) -> None:
    for result in results:
        say(result["photo"] + (f": {result['error']}" if "error" in result else ""))
        rows = [(c["label"], f"{c['probability']:.4f}") for c in result.get("top", [])]
        if rows:
            print_table(("class", "probability"), rows)


def _by_classifier(
    model: str, photos: list[str], top: int, dtype: str | None
) -> list[dict[str, Any]]:
    import torch

    results = []
    with torch.inference_mode(), progress("photos") as told:
        vit = classifier(model, dtype)
        for number, photo in enumerate(photos, 1):
            results.append(classified(vit, photo, top))
            told.tell("photos", number, len(photos))
    return results


def classifier(source: str, dtype: str | None = None) -> FMViT:
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
    vit = FMViT.from_pretrained(checkpoint, dtype=dtype)
    if not vit.num_classes:
        raise FourMError(f"{source} is a backbone without classes; see `fourm-lite finetune`")
    return vit


def classified(vit: FMViT, photo: str, top: int) -> dict[str, Any]:
    """The most probable classes of one photo, or why it cannot be read."""
    from fourm_lite.finetune.pixels import codec_for, one_photo, read_pixels

    try:
        pixels = read_pixels(one_photo(photo), vit.input_size[1:], codec_for(vit))
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


def export(
    model: str,
    out: Annotated[Path, typer.Option("--out", "-o")],
    forms: str = "",
    photos: Annotated[str, typer.Option(callback=present)] = "",
    images: Annotated[int, typer.Option(min=1)] = 64,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    threads: int = 0,
    as_json: opt.Json = None,
) -> None:
    """Export a ViT, and show how each form agrees with it and how fast it is.

    A model without a trained classifier is exported without a head: it gives its pooled features.

    Args:
        model: The classifier to export, or any model that reads pixels.
        out: Write the exported files into this folder.
        forms: Make these forms, with commas between them: export, onnx, onnx-int8, compile, bf16,
            int8; by default all that can be made here.
        photos: Compare on these photos, a folder or list, and take int8's ranges from them; by
            default on noise.
        images: Compare on this many images.
        batch: Run this many images at a time, also to measure speed.
        threads: Use this many CPU threads; 0 uses as many as there are.

    Raises:
        FourMError: the model reads no pixels, or a form that was named needs a missing package
    """
    require_folder(out, "--out")
    import torch

    from fourm_lite.backbone.export import report

    vit = _opened(model)
    if threads:
        torch.set_num_threads(threads)
    compared, others = _images(vit, photos, images)
    named = forms.split(",") if forms else _available()
    with progress("forms") as told:
        lines = report(
            vit, compared, forms=named, out=out, batch=batch, ranges_from=others,
            progress=told.of("forms"),
        )  # fmt: skip
    left_out = () if vit.num_classes else ("top1",)
    value = [{k: v for k, v in vars(a).items() if k not in left_out} for a in lines]
    deliver(value, as_json, lambda: _show_forms(lines, bool(vit.num_classes)))


def _show_forms(lines: Sequence[Any], has_classes: bool) -> None:
    agreement = "same top-1" if has_classes else "same largest feature"
    rows = [
        (a.form, f"{a.max_difference:.2g}", f"{100 * a.top1:.1f} %", f"{1000 * a.seconds:.1f}",
         f"{a.speedup:.2f}")
        for a in lines
    ]  # fmt: skip
    print_table(("form", "largest difference", agreement, "ms a batch", "speed"), rows)


def _opened(source: str) -> FMViT:
    """A classifier, or, with a note, the backbone alone where no head was trained."""
    from fourm_lite.backbone.load import is_classifier
    from fourm_lite.backbone.vit import FMViT
    from fourm_lite.io.checkpoint import read

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
    """The forms whose packages are here; a note says what the others lack."""
    from fourm_lite.backbone.export import FORMS, missing_packages

    lacking = {form: missing for form in FORMS if (missing := missing_packages(form))}
    for form, missing in lacking.items():
        needs = f"{form} needs {' and '.join(missing)}; pip install {' '.join(missing)}"
        say(f"left out: {needs}", aside=True)
    return [form for form in FORMS if form not in lacking]


def _images(vit: FMViT, photos: str, count: int) -> tuple[Tensor, Tensor | None]:
    """What is compared, and other photos (spread over all) that int8 takes its ranges from."""
    import torch

    from fourm_lite.finetune.pixels import read_pixels
    from fourm_lite.photos.labelled import Photo
    from fourm_lite.photos.records import read_records

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
    """The photos that can be read; a note names the others."""
    from fourm_lite.data.unread import readable

    good, left_out = readable(records)
    for one in left_out:
        say(f"left out: {one.uri}: {one.reason}", aside=True)
    return good
