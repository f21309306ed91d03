"""`fourm-lite evaluate retrieval`: captions to photos and back, as figures with their protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_json, print_table
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    AnyModel,
    BatchSize,
    Center,
    Data,
    Decode,
    Device,
    Dtype,
    Gallery,
    JsonFile,
    Rerank,
    RerankWeights,
    Seed,
    Split,
    Target,
    TextTokenizer,
    Tokenizers,
    dtype_of,
    numbers,
)
from fourm_lite.cli.words import Option

MEASURES = ("R@1", "R@5", "R@10", "median_rank", "MRR")


def retrieval(
    data: Data,
    model: AnyModel = "mini",
    split: Split = "test",
    gallery: Gallery = "model",
    target: Target = None,
    decode: Decode = "expected",
    steps: Annotated[int, Option("--steps", help="Forward passes a query.", min=1)] = 1,
    samples: Annotated[int, Option("--samples", help="Vectors drawn with sample.", min=1)] = 1,
    seed: Seed = 0,
    center: Center = True,
    rerank: Rerank = 0,
    rerank_weights: RerankWeights = None,
    fit_split: Annotated[
        str, Option("--fit-split", help="Where weights are fitted, unless they are given.")
    ] = "val",
    caption_depth: Annotated[
        int, Option("--caption-depth", help="Of the reranked, so many by log p(caption).", min=1)
    ] = 20,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure search on photos with captions, in both directions.

    Every caption is a query. The cosine is centred by the mean that the tokenizer was trained
    around, or by the gallery's where it has none.

    Raises:
        FourMError: the model or the data cannot be used
    """
    from fourm_lite.search.evaluate import evaluate_retrieval
    from fourm_lite.search.spaces import open_space

    space = open_space(
        model, target=target, gallery=gallery, decode=decode, steps=steps, samples=samples,  # type: ignore[arg-type]
        seed=seed, center=center, tokenizers=tokenizers, text_tokenizer=text_tokenizer,
        device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    with count_progress("photos") as counts:
        report = evaluate_retrieval(
            space, data, split, center=center, rerank=rerank,
            weights=numbers(rerank_weights, "--rerank-weight") if rerank_weights else None,
            fit_split=fit_split, caption_depth=caption_depth, batch_size=batch_size,
            facts={"data": str(data)}, tell=counts.tell,
        )  # fmt: skip
    write_report(report, out)
    if out is None or str(out) != "-":
        print_table(("", *MEASURES), _rows(report))


def _rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    tables = {"": report, "before: ": report.get("before_rerank", {})}
    return [
        (note + name.replace("_", " "), *(f"{100 * table[name][m]:.1f}" if m != "median_rank"
         else f"{table[name][m]:g}" for m in MEASURES))
        for note, table in tables.items()
        for name in ("text_to_image", "image_to_text")
        if name in table
    ]  # fmt: skip


def write_report(report: dict[str, Any], out: Path | None) -> None:
    """Writes a report whole, or prints it where `-` is asked for."""
    if out is None:
        return
    if str(out) == "-":
        print_json(report)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(out)
