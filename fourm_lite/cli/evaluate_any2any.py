"""`fourm-lite evaluate any2any`: every target from every source, beside chance and a constant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.evaluate_retrieval import write_report
from fourm_lite.cli.output import print_table, require_file, require_folder
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    BatchSize,
    ClassMaps,
    Data,
    Decode,
    Device,
    Dtype,
    JsonFile,
    PhotoLimit,
    Seed,
    Split,
    Teacher,
    Tokenizers,
    dtype_of,
    file_of,
)
from fourm_lite.cli.words import Option


def any2any(
    data: Data,
    model: Annotated[str, Option("--model", "-m", help="4M model: folder, name, hub id")] = "mini",
    split: Split = "test",
    teacher: Teacher = None,
    segmentation: ClassMaps = None,
    limit: PhotoLimit = None,
    decode: Decode = "expected",
    steps: Annotated[int, Option("--steps", help="Forward passes of a map.", min=1)] = 1,
    temperature: Annotated[
        float, Option("--temperature", help="Of texts; 0: the likeliest.", min=0)
    ] = 0.0,
    gallery: Annotated[
        Path | None, Option("--gallery", help="Also draw ten photos' targets into this folder.")
    ] = None,
    seed: Seed = 0,
    tokenizers: Tokenizers = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure generation from each of six sources to each target, on photos with captions.

    Sources: pixels, caption, segmentation, edges, embedding, caption with segmentation. What needs
    a teacher that is not named is left out.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    require_file(out, "--json")
    if gallery is not None:
        require_folder(gallery, "--gallery")
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.evaluate.any_to_any import How, evaluate_any2any
    from fourm_lite.evaluate.any_to_any_sheet import write_gallery
    from fourm_lite.evaluate.references import Teachers
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, tokenizers, device=device, dtype=dtype_of(dtype))
    teachers = Teachers(
        None if teacher is None else load_embedder(teacher),
        None if segmentation is None else file_of(segmentation, "--segmentation"),
    )
    how = How(decode, steps, temperature, batch_size, seed)  # type: ignore[arg-type]
    facts = {"data": str(data), "model": model, "teacher": teacher, "class_maps": segmentation}
    with count_progress("cells") as told:
        report = evaluate_any2any(
            pipe, data, split, teachers, limit=limit, how=how, facts=facts, progress=told.tell
        )
        if gallery is not None:
            write_gallery(
                pipe, data, split, teachers, gallery, model=model, seed=seed, progress=told.tell
            )
    write_report(report, out)
    if out is None or str(out) != "-":
        print_table(("source", "target", "measure", "value", "95%", "chance"), _rows(report))


def _rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            row["source"], row["target"], name + " (less is better)" * m["less_is_better"],
            f"{m['value']:.3f}", " - ".join(f"{bound:.3f}" for bound in m["interval"]),
            "" if m["chance"] is None else f"{m['chance']:.3f}",
        )
        for row in report["rows"]
        for name, m in row["measures"].items()
    ]  # fmt: skip
