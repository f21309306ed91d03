"""`fourm-lite evaluate zeroshot`: how often `classify --labels` is right on labelled photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

    Raises:
        FourMError: the model or the data cannot be used
    """
    require_file(out, "--json")
    from fourm_lite.search.zeroshot import evaluate_zeroshot, labelled_photos

    photos = labelled_photos(data, split, limit)
    words = dict.fromkeys(photos.classes, "")
    for label, names in names_of(labels or []).items():
        if label not in words:
            raise ConfigError(f"--labels: {data} has no class '{label}', only {list(words)}")
        words[label] = f"{label}={'|'.join(names)}"
    judge = judge_of(
        model, [given or name for name, given in words.items()], templates, temperature,
        by=by, target=target, tokenizers=tokenizers, text_tokenizer=text_tokenizer, device=device,
    )  # fmt: skip
    facts = {"model": model, "data": str(data), "split": split, "by": by,
             "templates": templates or ["{}"], "labels": labels or []}  # fmt: skip
    with count_progress("photos") as told:
        report = evaluate_zeroshot(judge, photos, facts=facts, tell=told.tell)
    write_report(report, out)
    if out is not None and str(out) == "-":
        return
    low, high = report["interval"]
    print_facts(
        {
            "accuracy": f"{report['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
            "photos": f"{report['protocol']['test_photos']} of {len(photos.classes)} classes",
            "log loss": f"{report['log_loss']:.4f}",
            "temperature": f"{report['temperature']:.4g}",
            "best temperature": f"{report['best_temperature']:.4g}",
            "left out": len(photos.skipped) or None,
            "written to": out,
        }
    )
