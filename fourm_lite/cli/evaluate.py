"""`fourm-lite evaluate retrieval`, `same-class`, `steps`, `any2any`, `tokenizers`: figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import (
    counts,
    dtype_of,
    numbers,
    open_reranker,
    tell_precision,
    writable,
)
from fourm_lite.cli.output import deliver, print_facts, print_table, progress, require_folder
from fourm_lite.errors import ConfigError

if TYPE_CHECKING:
    from fourm_lite.evaluate.retrieval import Reranking

MEASURES = ("R@1", "R@5", "R@10", "median_rank", "MRR", "nDCG@10", "mAP")


def retrieval(
    data: opt.Data,
    model: opt.AnyModel = "mini",
    split: opt.Split = "test",
    gallery: opt.Gallery = "model",
    target: opt.Target = None,
    decode: opt.Decode = "expected",
    steps: Annotated[int, typer.Option(min=1)] = 1,
    samples: opt.Samples = 1,
    seed: opt.Seed = 0,
    center: opt.Center = True,
    spread: opt.QueryWhitening = None,
    rerank: opt.Rerank = 0,
    rerank_weights: opt.RerankWeights = None,
    fit_split: str | None = None,
    caption_depth: Annotated[int, typer.Option(min=1)] = 20,
    rerank_given: str = "auto",
    reranker: opt.RerankerName = None,
    depths: Annotated[str | None, typer.Option("--rerank-depths")] = None,
    plot: Annotated[Path | None, typer.Option(callback=writable)] = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    batch_size: opt.BatchSize = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Json = None,
) -> None:
    """Measure search on photos with captions, in both directions.

    Every caption is a query. The cosine is centred by the mean that the tokenizer was trained
    around, or by the gallery's where it has none. With --rerank the figures under the usual names
    are the reranked ones; those by cosine are printed beside them.

    Args:
        steps: Decode a query in this many forward passes.
        fit_split: Fit the reranking on this split; by default it is the model's own.
        caption_depth: Judge this many of the reranked hits by how likely they make the caption.
        rerank_given: Judge how likely words are from this of a hit: codes, pixels, both or auto.
        depths: Also measure reranking of so many hits: 0,10,20,50,100.
        plot: Draw quality against --rerank-depths into this PNG file.

    Raises:
        FourMError: the model or the data cannot be used
    """
    if plot is not None and depths is None:
        raise ConfigError("--plot draws quality against rerank depth; give --rerank-depths")
    from fourm_lite.evaluate.retrieval import evaluate_retrieval
    from fourm_lite.search.spaces import open_space

    how = _reranking(
        rerank, rerank_weights, fit_split, caption_depth, rerank_given, reranker, depths
    )
    judge = open_reranker(reranker, device) if reranker else None
    tell_precision(dtype, model, device)
    space = open_space(
        model, target=target, gallery=gallery, decode=decode, steps=steps, samples=samples,  # type: ignore[arg-type]
        seed=seed, center=center, spread=spread, tokenizers=tokenizers,
        text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    held = space.whitening
    protocol = {"data": str(data), "query_spread": 0.0 if held is None else held.power}
    with progress("photos") as told:
        report = evaluate_retrieval(
            space, data, split, center=center, rerank=how, reranker=judge, batch_size=batch_size,
            facts=protocol, progress=told.tell,
        )  # fmt: skip
    if plot is not None:
        _draw(report, plot)
    names = [m.replace("_rank", "") for m in MEASURES]
    deliver(report, out, lambda: print_table(("", *names), _rows(report), whole=1))


def _reranking(
    rerank: int,
    weights: list[str] | None,
    fit_split: str | None,
    caption_depth: int,
    given: str,
    reranker: str | None,
    depths: str | None,
) -> Reranking:
    """How hits are reranked; options that belong to no reranking, or to another, are refused."""
    from fourm_lite.evaluate.retrieval import Reranking
    from fourm_lite.search.rerank import check_choices

    check_choices(
        reranker, max(rerank, depths is not None), weights=weights or None, fit_split=fit_split,
        rerank_given=None if given == "auto" else given,
    )  # fmt: skip
    return Reranking(
        rerank, numbers(weights, "--rerank-weight") if weights else None, fit_split, caption_depth,
        given, counts(depths, "--rerank-depths", least=0) if depths else (),  # type: ignore[arg-type]
    )  # fmt: skip


def _draw(report: dict[str, Any], path: Path) -> None:
    from fourm_lite.evaluate.retrieval import depth_lines
    from fourm_lite.metrics.plots import plot_lines

    title = f"reranked, {report['protocol']['photos']} photos"
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


def same_class(
    data: opt.LabelledFolder,
    model: opt.AnyModel = "mini",
    split: str = "test",
    gallery: opt.Gallery = "model",
    target: opt.Target = None,
    decode: opt.Decode = "expected",
    center: opt.Center = True,
    tokenizers: opt.Tokenizers = None,
    batch_size: opt.BatchSize = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Json = None,
) -> None:
    """Measure how well photos find photos of their class: mAP by the GPR1200 protocol.

    Every photo is a query, all others of its class are right, and the query itself is left out.

    Args:
        split: Use the photos of this split; 'all' uses all photos.

    Raises:
        FourMError: the model or the data cannot be used
    """
    from fourm_lite.evaluate.retrieval import evaluate_same_class
    from fourm_lite.search.spaces import open_space

    tell_precision(dtype, model, device)
    space = open_space(
        model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    with progress("photos") as told:
        report = evaluate_same_class(space, data, split, batch_size=batch_size, progress=told.tell)
    deliver(report, out, lambda: _show(report, out))


def _show(report: dict[str, Any], written: str | None) -> None:
    protocol, (low, high) = report["protocol"], report["interval"]["mAP"]
    left_out = len(protocol["skipped"]) + len(protocol["left_out_alone_in_class"])
    print_facts(
        {
            "mAP": f"{report['mAP']:.4f} [{low:.4f}, {high:.4f}]",
            **{f"R@{k}": f"{report[f'R@{k}']:.4f}" for k in (1, 5, 10)},
            "photos": f"{protocol['images']} of {protocol['classes']} classes",
            "left out": left_out or None,
            "score": protocol.get("score"),
            "written to": written,
        }
    )


def steps(
    data: opt.Data,
    model: opt.AnyModel = "mini",
    split: opt.Split = "test",
    gallery: opt.Gallery = "model",
    target: opt.Target = None,
    passes: Annotated[str, typer.Option("--steps")] = "1,2,4,8,16",
    decodes: Annotated[str, typer.Option("--decode")] = "argmax,sample,expected",
    center: opt.Center = True,
    most: Annotated[int | None, typer.Option("--queries", min=1)] = None,
    seed: opt.Seed = 0,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    batch_size: opt.BatchSize = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    plot: Annotated[Path | None, typer.Option(callback=writable)] = None,
    out: opt.Json = None,
) -> None:
    """Measure caption to photo against decoding steps, for each way to decode.

    Args:
        passes: Decode in each of these numbers of forward passes, with commas.
        decodes: Compare these ways to decode, with commas.
        most: Ask at most this many captions, drawn evenly over the list.
        plot: Draw R@10 against steps into this PNG file.

    Raises:
        FourMError: the model or the data cannot be used
    """
    from fourm_lite.evaluate.embedding_steps import evaluate_steps, steps_lines
    from fourm_lite.search.spaces import open_model_space

    tell_precision(dtype, model, device)
    space = open_model_space(
        model, target=target, gallery=gallery, center=center, seed=seed, tokenizers=tokenizers,
        text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    with progress("photos") as told:
        report = evaluate_steps(
            space, data, split, steps=counts(passes, "--steps"), decodes=decodes.split(","),  # type: ignore[arg-type]
            center=center, batch_size=batch_size, most=most, facts={"data": str(data)},
            progress=told.tell,
        )  # fmt: skip
    if plot is not None:
        from fourm_lite.metrics.plots import plot_lines

        title = f"caption to photo, {report['protocol']['photos']} photos"
        plot_lines(steps_lines(report), plot, title=title, x_label="steps", y_label="R@10")
    head = ("decode", "steps", "R@1", "R@5", "R@10", "95%", "median", "ms")
    deliver(report, out, lambda: print_table(head, _points(report)))


def _points(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            point["decode"], point["steps"], *(f"{100 * point[f'R@{k}']:.1f}" for k in (1, 5, 10)),
            " - ".join(f"{100 * bound:.1f}" for bound in point["interval"]["R@10"]),
            f"{point['median_rank']:g}", f"{1000 * point['seconds_per_query']:.1f}",
        )
        for point in report["points"]
    ]  # fmt: skip


def any2any(
    data: opt.Data,
    model: opt.FourM = "mini",
    split: opt.Split = "test",
    teacher: opt.Teacher = None,
    segmentation: opt.ClassMaps = None,
    limit: opt.PhotoLimit = None,
    decode: opt.Decode = "expected",
    steps: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    gallery: Path | None = None,
    seed: opt.Seed = 0,
    tokenizers: opt.Tokenizers = None,
    batch_size: opt.BatchSize = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Json = None,
) -> None:
    """Measure generation from each of six sources to each target, on photos with captions.

    Sources: pixels, caption, segmentation, edges, embedding, caption with segmentation. What needs
    a teacher that is not named is left out.

    Args:
        steps: Decode a map in this many forward passes.
        temperature: Draw texts at this temperature; 0 takes the likeliest.
        gallery: Also draw what is made of nine of the photos into this folder.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    if gallery is not None:
        require_folder(gallery, "--gallery")
    from fourm_lite.evaluate.any_to_any import How, evaluate_any2any
    from fourm_lite.evaluate.any_to_any_sheet import write_gallery
    from fourm_lite.evaluate.caption_sets import CaptionPack
    from fourm_lite.pipeline.pipeline import FourMPipeline

    tell_precision(dtype, model, device)
    pipe = FourMPipeline.from_pretrained(model, tokenizers, device=device, dtype=dtype_of(dtype))
    teachers = _teachers(teacher, segmentation)
    how = How(decode, steps, temperature, batch_size, seed)  # type: ignore[arg-type]
    facts = {"data": str(data), "model": model, "teacher": teacher, "class_maps": segmentation}
    with progress("cells") as told:
        report = evaluate_any2any(
            pipe, data, split, teachers, limit=limit, how=how, facts=facts, progress=told.tell
        )
        if gallery is not None:
            photos = CaptionPack.read(data, split).subsample(limit)
            options = {
                "data": data, "model": model, "split": split, "limit": limit, "teacher": teacher,
                "segmentation": segmentation,
            }  # fmt: skip
            write_gallery(
                pipe, photos, teachers, gallery, options=options, seed=seed, progress=told.tell
            )
    head = ("source", "target", "measure", "value", "95%", "chance")
    deliver(report, out, lambda: print_table(head, _cells(report)))


def _teachers(teacher: list[str] | None, segmentation: str | None) -> Any:
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.evaluate.references import Teachers

    return Teachers(
        tuple(load_embedder(spec) for spec in teacher or ()),
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
    data: opt.Data,
    model: opt.FourM = "mini",
    split: opt.Split = "test",
    teacher: opt.Teacher = None,
    segmentation: opt.ClassMaps = None,
    limit: opt.PhotoLimit = None,
    names: opt.Tokenizers = None,
    batch_size: opt.BatchSize = 32,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: opt.Json = None,
) -> None:
    """Measure a model's tokenizers: values against what their own tokens decode to.

    Raises:
        FourMError: the model, the data or a teacher cannot be used
    """
    from fourm_lite.evaluate.tokenizer_report import evaluate_tokenizers
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, names, device=device, dtype=dtype_of(dtype))
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
