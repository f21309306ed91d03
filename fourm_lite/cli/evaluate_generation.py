"""`fourm-lite evaluate any2any`, `tokenizers`: how good generated values and tokens are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fourm_lite.cli.options import (
    BatchSize,
    ClassMaps,
    Data,
    Decode,
    Device,
    Dtype,
    FourM,
    Json,
    PhotoLimit,
    Seed,
    Split,
    Teacher,
    Tokenizers,
    dtype_of,
)
from fourm_lite.cli.output import deliver, print_table, progress, require_folder


def any2any(
    data: Data,
    model: FourM = "mini",
    split: Split = "test",
    teacher: Teacher = None,
    segmentation: ClassMaps = None,
    limit: PhotoLimit = None,
    decode: Decode = "expected",
    steps: Annotated[
        int, typer.Option("--steps", help="Decode a map in this many forward passes.", min=1)
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", help="Draw texts at this temperature; 0 takes the likeliest.", min=0
        ),
    ] = 0.0,
    gallery: Annotated[
        Path | None,
        typer.Option("--gallery", help="Also draw the targets of ten photos into this folder."),
    ] = None,
    seed: Seed = 0,
    tokenizers: Tokenizers = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    out: Json = None,
) -> None:
    """Measure generation from each of six sources to each target, on photos with captions.

    Sources: pixels, caption, segmentation, edges, embedding, caption with segmentation. What needs
    a teacher that is not named is left out.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    if gallery is not None:
        require_folder(gallery, "--gallery")
    from fourm_lite.evaluate.any_to_any import How, evaluate_any2any
    from fourm_lite.evaluate.any_to_any_sheet import write_gallery
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, tokenizers, device=device, dtype=dtype_of(dtype))
    teachers = _teachers(teacher, segmentation)
    how = How(decode, steps, temperature, batch_size, seed)  # type: ignore[arg-type]
    facts = {"data": str(data), "model": model, "teacher": teacher, "class_maps": segmentation}
    with progress("cells") as told:
        report = evaluate_any2any(
            pipe, data, split, teachers, limit=limit, how=how, facts=facts, progress=told.tell
        )
        if gallery is not None:
            write_gallery(
                pipe, data, split, teachers, gallery, model=model, seed=seed, progress=told.tell
            )
    head = ("source", "target", "measure", "value", "95%", "chance")
    deliver(report, out, lambda: print_table(head, _cells(report)))


def _teachers(teacher: str | None, segmentation: str | None) -> Any:
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.evaluate.references import Teachers

    return Teachers(
        None if teacher is None else load_embedder(teacher),
        None if segmentation is None else Path(segmentation).expanduser(),
    )


def _cells(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            row["source"], row["target"], name + " (less is better)" * m["less_is_better"],
            f"{m['value']:.3f}", " - ".join(f"{bound:.3f}" for bound in m["interval"]),
            "" if m["chance"] is None else f"{m['chance']:.3f}",
        )
        for row in report["rows"]
        for name, m in row["measures"].items()
    ]  # fmt: skip


def tokenizers(
    data: Data,
    model: FourM = "mini",
    split: Split = "test",
    teacher: Teacher = None,
    segmentation: ClassMaps = None,
    limit: PhotoLimit = None,
    names: Tokenizers = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    out: Json = None,
) -> None:
    """Measure a model's tokenizers: values against what their own tokens decode to.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    from fourm_lite.evaluate.tokenizer_report import evaluate_tokenizers
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, names, device=device)
    teachers = _teachers(teacher, segmentation)
    facts = {"data": str(data), "model": model, "teacher": teacher, "class_maps": segmentation}
    with progress("tokenizers") as told:
        report = evaluate_tokenizers(
            pipe, data, split, teachers,
            limit=limit, batch_size=batch_size, facts=facts, progress=told.tell,
        )  # fmt: skip
    head = ("modality", "tokens", "codes", "measure", "value", "majority", "used", "perplexity")
    deliver(report, out, lambda: print_table(head, _losses(report)))


def _losses(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            row["modality"], row["tokens"], row["codes"], name,
            f"{m['value']:.3f}", f"{m['majority']:.3f}",
            f"{row['codes_used']:.2f}", f"{row['perplexity']:.0f}",
        )
        for row in report["rows"]
        for name, m in row["measures"].items()
    ]  # fmt: skip
