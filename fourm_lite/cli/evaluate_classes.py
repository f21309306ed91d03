"""`fourm-lite evaluate zeroshot`, `knn`, `probe`, `fewshot`: how well photos are classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import counts, dtype_of, present, tell_precision
from fourm_lite.cli.output import deliver, print_facts, progress
from fourm_lite.errors import ConfigError, check_choice

FeatureModel = Annotated[
    str,
    typer.Option(
        "--model", "-m",
        help="Use the features of this 4M model, FMViT or embedding network (timm:NAME, "
        "hf:FOLDER).",
    ),
]  # fmt: skip
Labelled = Annotated[
    str,
    typer.Option("--data", help="Learn from the labelled photos in this folder.", callback=present),
]
TestData = Annotated[
    str,
    typer.Option(
        "--test-data",
        help="Measure on the photos in this folder; by default on those of --data.",
        callback=present,
    ),
]
WhichFeatures = Annotated[
    str,
    typer.Option(
        "--features",
        help="Take these features: of a 4M model 'encoder' (the mean of its tokens) or 'embedding' "
        "(the expected global embedding); of an embedding network 'raw', or a tokenizer's name "
        "for what is left after tokenizing.",
    ),
]


def zeroshot(
    data: opt.LabelledFolder,
    model: opt.AnyModel = "mini",
    split: opt.Split = "test",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    labels: opt.Texts = None,
    templates: Annotated[opt.Texts, typer.Option("--template")] = None,
    template_set: Annotated[str | None, typer.Option("--templates")] = None,
    classes: str | None = None,
    by: str | None = None,
    temperature: float | None = None,
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Json = None,
) -> None:
    """Measure classes in words on labelled photos: accuracy, and how good the probabilities are.

    As OpenCLIP's users run it: --classes imagenet --templates openai.

    Args:
        limit: Use this many photos, evenly over the list.
        labels: Call a class by other words: 'CLASS=NAME|NAME'. May be repeated.
        templates: Put each class into this sentence, such as 'a photo of a {}'. May be repeated;
            then the sentences are averaged.
        template_set: Use a known set of sentences: openai (80 of them) or simple.
        classes: Judge among the 1,000 classes of ImageNet, by their names: imagenet.
        by: Compare photos with words by a 4M model's 'embedding' or by the 'likelihood' of the
            words.
        temperature: Divide the scores by this before the softmax.

    Raises:
        FourMError: the model or the data cannot be used
    """
    from fourm_lite.evaluate.photo_classes import evaluate_zeroshot, labelled_photos
    from fourm_lite.evaluate.zero_shot import open_named_classifier

    photos = labelled_photos(data, split, limit)
    templates = _sentences(templates, template_set)
    options: dict[str, Any] = {
        "by": by, "target": target, "tokenizers": tokenizers, "text_tokenizer": text_tokenizer,
        "device": device, "dtype": dtype_of(dtype),
    }  # fmt: skip
    tell_precision(dtype, model, device)
    if classes is None:
        words = _words(photos.classes, labels or [], data)
        judge = open_named_classifier(model, words, templates, temperature, **options)
    else:
        photos, judge = _imagenet(photos, classes, labels, model, templates, temperature, options)
    facts = {"model": model, "data": str(data), "split": split, "by": by,
             "templates": templates or ["{}"], "labels": labels or []}  # fmt: skip
    with progress("photos") as told:
        report = evaluate_zeroshot(judge, photos, facts=facts, progress=told.tell)
    count = len(photos.classes), len(photos.skipped)
    deliver(
        report,
        out,
        lambda: print_facts(_facts(report, *count) | {"written to": out}),
    )


def knn(
    model: FeatureModel,
    data: Labelled,
    test_data: TestData = "",
    as_json: opt.Json = None,
    features: WhichFeatures = "",
    dtype: opt.Dtype = None,
    k: Annotated[int, typer.Option(min=1)] = 20,
    temperature: float = 0.07,
) -> None:
    """Classify photos by their nearest neighbours among the training photos.

    Args:
        k: Let this many nearest neighbours vote.
        temperature: Weigh votes by similarity at this temperature.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    from fourm_lite.evaluate.photo_classes import by_neighbours

    found = _features(model, data, test_data, features, dtype)
    _deliver(by_neighbours(found, k=k, temperature=temperature), as_json)


def probe(
    model: FeatureModel,
    data: Labelled,
    test_data: TestData = "",
    as_json: opt.Json = None,
    features: WhichFeatures = "",
    dtype: opt.Dtype = None,
) -> None:
    """Classify photos by a linear map of frozen features.

    The weight penalty is chosen on the validation photos, or on a tenth of the training photos.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    from fourm_lite.evaluate.photo_classes import by_linear_map

    found = _features(model, data, test_data, features, dtype)
    _deliver(by_linear_map(found), as_json)


def fewshot(
    model: FeatureModel,
    data: Labelled,
    test_data: TestData = "",
    as_json: opt.Json = None,
    features: WhichFeatures = "",
    dtype: opt.Dtype = None,
    shots: str = "5,20",
    draws: Annotated[int, typer.Option(min=1)] = 5,
    seed: opt.Seed = 0,
) -> None:
    """Classify photos by linear maps that saw a few photos of each class.

    Args:
        shots: Learn from this many photos of each class, with commas; the first number gives the
            headline.
        draws: Draw this many training sets for each number.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    numbers = counts(shots, "--shots")
    from fourm_lite.evaluate.photo_classes import by_few_photos

    found = _features(model, data, test_data, features, dtype)
    _deliver(by_few_photos(found, numbers, draws=draws, seed=seed), as_json)


def _features(model: str, data: str, test_data: str, which: str, dtype: str | None) -> Any:
    """The frozen features that are classified, of the photos to learn from and those asked."""
    from fourm_lite.evaluate.photo_classes import features_of

    tell_precision(dtype, model)
    with progress("photos") as told:
        return features_of(model, data, test_data, which, dtype, progress=told.tell)


def _deliver(report: dict[str, Any], as_json: str | None) -> None:
    """The report of frozen features."""
    facts, (low, high) = report["protocol"], report["interval"]
    shown = {
        "protocol": facts["what"],
        "accuracy": f"{report['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
        "photos": f"{facts['train_photos']} to learn from, {facts['test_photos']} asked",
        "left out": len(facts["skipped"]) or None,
        **{f"{n} shots": f"{r['accuracy']:.4f}" for n, r in report.get("by_shots", {}).items()},
        "written to": as_json,
    }
    deliver(report, as_json, lambda: print_facts(shown))


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
    from fourm_lite.evaluate.zero_shot import label_names

    words = dict.fromkeys(classes, "")
    for label, names in label_names(labels).items():
        if label not in words:
            raise ConfigError(f"--labels: {data} has no class '{label}', only {list(words)}")
        words[label] = f"{label}={'|'.join(names)}"
    return [given or name for name, given in words.items()]


def _sentences(templates: opt.Texts, known: str | None) -> opt.Texts:
    """The templates that are given, or those of a known set."""
    if known is None:
        return templates
    if templates:
        raise ConfigError("--template and --templates name the same thing; leave one of them out")
    from fourm_lite.evaluate.photo_classes import templates_of

    return list(templates_of(known))


def _imagenet(
    photos: Any,
    classes: str,
    labels: opt.Texts,
    model: str,
    templates: opt.Texts,
    temperature: float | None,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """The photos among all of ImageNet's classes, and what judges by their names."""
    from fourm_lite.evaluate.photo_classes import CLASSES, as_imagenet, imagenet_names
    from fourm_lite.evaluate.zero_shot import open_classifier

    check_choice(
        "--classes", classes, of=CLASSES,
        advice="Other classes are those of the photos, with --labels for other words.",
    )  # fmt: skip
    if labels:
        raise ConfigError("--classes imagenet brings its own names; leave out --labels")
    names = imagenet_names()
    judge = open_classifier(
        model, names, templates=tuple(templates or ("{}",)), temperature=temperature, **options
    )
    return as_imagenet(photos, names), judge
