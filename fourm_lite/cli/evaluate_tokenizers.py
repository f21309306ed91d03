"""`fourm-lite evaluate tokenizers`: what tokens keep of the values that they stand for."""

from __future__ import annotations

from typing import Annotated, Any

from fourm_lite.cli.evaluate_retrieval import write_report
from fourm_lite.cli.output import print_table, require_file
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    BatchSize,
    ClassMaps,
    Data,
    Device,
    JsonFile,
    PhotoLimit,
    Split,
    Teacher,
    Tokenizers,
    file_of,
)
from fourm_lite.cli.words import Option


def tokenizers(
    data: Data,
    model: Annotated[str, Option("--model", "-m", help="4M model: folder, name, hub id")] = "mini",
    split: Split = "test",
    teacher: Teacher = None,
    segmentation: ClassMaps = None,
    limit: PhotoLimit = None,
    names: Tokenizers = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure a model's tokenizers: values against what their own tokens decode to.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    require_file(out, "--json")
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.evaluate.references import Teachers
    from fourm_lite.evaluate.tokenizers import evaluate_tokenizers
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, names, device=device)
    teachers = Teachers(
        None if teacher is None else load_embedder(teacher),
        None if segmentation is None else file_of(segmentation, "--segmentation"),
    )
    facts = {"data": str(data), "model": model, "teacher": teacher, "class_maps": segmentation}
    with count_progress("tokenizers") as told:
        report = evaluate_tokenizers(
            pipe, data, split, teachers,
            limit=limit, batch_size=batch_size, facts=facts, progress=told.tell,
        )  # fmt: skip
    write_report(report, out)
    if out is None or str(out) != "-":
        print_table(
            ("modality", "tokens", "codes", "measure", "value", "majority", "used", "perplexity"),
            _rows(report),
        )


def _rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            row["modality"], row["tokens"], row["codes"], name,
            f"{m['value']:.3f}", f"{m['majority']:.3f}",
            f"{row['codes_used']:.2f}", f"{row['perplexity']:.0f}",
        )
        for row in report["rows"]
        for name, m in row["measures"].items()
    ]  # fmt: skip
