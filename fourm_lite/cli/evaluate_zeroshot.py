"""`fourm-lite evaluate zeroshot`: how often `classify --labels` is right on labelled photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.classify_words import judge_of, names_of
from fourm_lite.cli.evaluate_retrieval import write_report
from fourm_lite.cli.output import print_facts, require_file
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    AnyModel,
    Device,
    JsonFile,
    Target,
    Texts,
    TextTokenizer,
    Tokenizers,
)
from fourm_lite.cli.words import Option
from fourm_lite.errors import ConfigError


def zeroshot(
    data: Annotated[Path, Option("--data", help="Folder with labels.jsonl, or of classes.")],
    model: AnyModel = "mini",
    split: Annotated[str, Option("--split", help="Which of the photos.")] = "test",
    limit: Annotated[
        int | None, Option("--limit", help="So many photos, evenly over the list.", min=1)
    ] = None,
    labels: Annotated[
        Texts, Option("--labels", help="Other words for a class: 'CLASS=NAME|NAME'. Repeatable.")
    ] = None,
    templates: Annotated[
        Texts, Option("--template", help="'a photo of a {}'. Repeatable, averaged.")
    ] = None,
    template_set: Annotated[
        str | None, Option("--templates", help="A known set of sentences: openai (80) or simple.")
    ] = None,
    classes: Annotated[
        str | None,
        Option("--classes", help="imagenet: judge among its 1,000 classes, by their names."),
    ] = None,
    by: Annotated[
        str | None, Option("--by", help="Of a 4M model: embedding or likelihood.")
    ] = None,
    temperature: Annotated[float | None, Option("--temperature", help="Of the softmax.")] = None,
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure classes in words on labelled photos: accuracy, and how good the probabilities are.

    As OpenCLIP's users run it: --classes imagenet --templates openai.

    Raises:
        FourMError: the model or the data cannot be used
    """
    require_file(out, "--json")
    from fourm_lite.evaluate.zero_shot import evaluate_zeroshot, labelled_photos

    photos = labelled_photos(data, split, limit)
    templates = _sentences(templates, template_set)
    options: dict[str, Any] = {
        "by": by, "target": target, "tokenizers": tokenizers, "text_tokenizer": text_tokenizer,
        "device": device,
    }  # fmt: skip
    if classes is None:
        words = _words(photos.classes, labels or [], data)
        judge = judge_of(model, words, templates, temperature, **options)
    else:
        photos, judge = _imagenet(photos, classes, labels, model, templates, temperature, options)
    facts = {"model": model, "data": str(data), "split": split, "by": by,
             "templates": templates or ["{}"], "labels": labels or []}  # fmt: skip
    with count_progress("photos") as told:
        report = evaluate_zeroshot(judge, photos, facts=facts, progress=told.tell)
    write_report(report, out)
    if out is not None and str(out) == "-":
        return
    print_facts(_facts(report, len(photos.classes), len(photos.skipped)) | {"written to": out})


def _facts(report: Mapping[str, Any], classes: int, skipped: int) -> dict[str, Any]:
    """The figures of a report in words."""
    low, high = report["interval"]
    top5 = report["top_5"]
    return {
        "accuracy": f"{report['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
        "among the first five": None if top5 is None else f"{top5:.4f}",
        "photos": f"{report['protocol']['test_photos']} of {classes} classes",
        "log loss": f"{report['log_loss']:.4f}",
        "temperature": f"{report['temperature']:.4g}",
        "best temperature": f"{report['best_temperature']:.4g}",
        "left out": skipped or None,
    }


def _words(classes: Sequence[str], labels: Sequence[str], data: Path) -> list[str]:
    """Each class with the other words for it."""
    words = dict.fromkeys(classes, "")
    for label, names in names_of(labels).items():
        if label not in words:
            raise ConfigError(f"--labels: {data} has no class '{label}', only {list(words)}")
        words[label] = f"{label}={'|'.join(names)}"
    return [given or name for name, given in words.items()]


def _sentences(templates: Texts, known: str | None) -> Texts:
    """The templates that are given, or those of a known set."""
    if known is None:
        return templates
    if templates:
        raise ConfigError("--template and --templates name the same thing; leave one of them out")
    from fourm_lite.evaluate.imagenet import templates_of

    return list(templates_of(known))


def _imagenet(
    photos: Any,
    classes: str,
    labels: Texts,
    model: str,
    templates: Texts,
    temperature: float | None,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """The photos among all of ImageNet's classes, and what judges by their names."""
    from fourm_lite.evaluate.imagenet import CLASSES, as_imagenet, imagenet_names
    from fourm_lite.evaluate.zero_shot import open_judge

    if classes not in CLASSES:
        raise ConfigError(
            f"--classes is {' or '.join(CLASSES)}, got '{classes}'; other classes are those of the "
            "photos, with --labels for other words"
        )
    if labels:
        raise ConfigError("--classes imagenet brings its own names; leave out --labels")
    names = imagenet_names()
    judge = open_judge(
        model, names, templates=tuple(templates or ("{}",)), temperature=temperature, **options
    )
    return as_imagenet(photos, names), judge
