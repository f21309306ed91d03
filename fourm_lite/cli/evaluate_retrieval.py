"""`fourm-lite evaluate retrieval`: captions to photos and back, as figures with their protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_json, print_table, require_file
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
    QuerySpread,
    Rerank,
    RerankWeights,
    Samples,
    Seed,
    Split,
    Target,
    TextTokenizer,
    Tokenizers,
    counts,
    dtype_of,
    numbers,
)
from fourm_lite.cli.words import Option
from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_whole

MEASURES = ("R@1", "R@5", "R@10", "median_rank", "MRR", "nDCG@10", "mAP")


def retrieval(
    data: Data,
    model: AnyModel = "mini",
    split: Split = "test",
    gallery: Gallery = "model",
    target: Target = None,
    decode: Decode = "expected",
    steps: Annotated[int, Option("--steps", help="Forward passes a query.", min=1)] = 1,
    samples: Samples = 1,
    seed: Seed = 0,
    center: Center = True,
    spread: QuerySpread = None,
    rerank: Rerank = 0,
    rerank_weights: RerankWeights = None,
    fit_split: Annotated[
        str | None, Option("--fit-split", help="Fit weights there; the model's own by default.")
    ] = None,
    caption_depth: Annotated[
        int, Option("--caption-depth", help="Of the reranked, so many by log p(caption).", min=1)
    ] = 20,
    rerank_given: Annotated[
        str, Option("--rerank-given", help="Words are said from codes, pixels or both.")
    ] = "auto",
    depths: Annotated[
        str | None, Option("--rerank-depths", help="Also measure these: 0,10,20,50,100.")
    ] = None,
    plot: Annotated[Path | None, Option("--plot", help="Draw quality against them (PNG).")] = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure search on photos with captions, in both directions.

    Every caption is a query. The cosine is centred by the mean that the tokenizer was trained
    around, or by the gallery's where it has none. With --rerank the figures under the usual names
    are the reranked ones; those by cosine alone stand beside them.

    Raises:
        FourMError: the model or the data cannot be used
    """
    _check_outputs(out, plot, depths)
    from fourm_lite.evaluate.retrieval import Reranking, evaluate_retrieval
    from fourm_lite.search.spaces import open_space, spread_of

    how = Reranking(
        rerank, numbers(rerank_weights, "--rerank-weight") if rerank_weights else None,
        fit_split, caption_depth, rerank_given,  # type: ignore[arg-type]
        counts(depths, "--rerank-depths", least=0) if depths else (),
    )  # fmt: skip
    space = open_space(
        model, target=target, gallery=gallery, decode=decode, steps=steps, samples=samples,  # type: ignore[arg-type]
        seed=seed, center=center, spread=spread, tokenizers=tokenizers,
        text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    with count_progress("photos") as told:
        report = evaluate_retrieval(
            space, data, split, center=center, rerank=how, batch_size=batch_size,
            facts={"data": str(data), **spread_of(space)}, progress=told.tell,
        )  # fmt: skip
    if plot is not None:
        _draw(report, plot)
    write_report(report, out)
    if out is None or str(out) != "-":
        names = [m.replace("_rank", "") for m in MEASURES]
        print_table(("", *names), _rows(report), whole=1)


def _check_outputs(out: Path | None, plot: Path | None, depths: str | None) -> None:
    require_file(out, "--json")
    require_file(plot, "--plot")
    if plot is not None and depths is None:
        raise ConfigError("--plot draws quality against rerank depth; give --rerank-depths")


def _draw(report: dict[str, Any], path: Path) -> None:
    from fourm_lite.evaluate.retrieval import depth_lines
    from fourm_lite.metrics.plots import plot_lines

    title = f"reranked by likelihood, {report['protocol']['photos']} photos"
    plot_lines(
        depth_lines(report), path, title=title, x_label="rerank depth", y_label="share found"
    )


def _rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    tables = {"": report, "before: ": report.get("before_rerank", {})}
    tables |= {f"depth {point['depth']}: ": point for point in report.get("by_depth", [])}
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
    write_whole(out, json.dumps(report, indent=2, allow_nan=False) + "\n")
