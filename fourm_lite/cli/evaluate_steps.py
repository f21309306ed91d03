"""`fourm-lite evaluate steps`: quality of search against decoding steps, as figures and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.evaluate_retrieval import write_report
from fourm_lite.cli.output import print_table, require_file
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    AnyModel,
    BatchSize,
    Center,
    Data,
    Device,
    Dtype,
    Gallery,
    JsonFile,
    Seed,
    Split,
    Target,
    TextTokenizer,
    Tokenizers,
    counts,
    dtype_of,
)
from fourm_lite.cli.words import Option
from fourm_lite.errors import ConfigError


def steps(
    data: Data,
    model: AnyModel = "mini",
    split: Split = "test",
    gallery: Gallery = "model",
    target: Target = None,
    passes: Annotated[str, Option("--steps", help="Forward passes, with commas.")] = "1,2,4,8,16",
    decodes: Annotated[
        str, Option("--decode", help="Ways to decode, with commas.")
    ] = "argmax,sample,expected",
    center: Center = True,
    most: Annotated[
        int | None, Option("--queries", help="At most so many captions, drawn evenly.", min=1)
    ] = None,
    seed: Seed = 0,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    plot: Annotated[Path | None, Option("--plot", help="Draw R@10 against steps (PNG).")] = None,
    out: JsonFile = None,
) -> None:
    """Measure caption to photo against decoding steps, for each way to decode.

    Raises:
        FourMError: the model or the data cannot be used
    """
    require_file(out, "--json")
    require_file(plot, "--plot")
    from fourm_lite.evaluate.embedding_steps import evaluate_steps, steps_lines
    from fourm_lite.search.spaces import ModelSpace, open_space

    space = open_space(
        model, target=target, gallery=gallery, center=center, seed=seed, tokenizers=tokenizers,
        text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    if not isinstance(space, ModelSpace):
        raise ConfigError("a twin encoder has no decoding steps; give a 4M model")
    with count_progress("photos") as told:
        report = evaluate_steps(
            space, data, split, steps=counts(passes, "--steps"), decodes=decodes.split(","),  # type: ignore[arg-type]
            center=center, batch_size=batch_size, most=most, facts={"data": str(data)},
            progress=told.tell,
        )  # fmt: skip
    if plot is not None:
        from fourm_lite.metrics.plots import plot_lines

        title = f"caption to photo, {report['protocol']['photos']} photos"
        plot_lines(steps_lines(report), plot, title=title, x_label="steps", y_label="R@10")
    write_report(report, out)
    if out is None or str(out) != "-":
        print_table(("decode", "steps", "R@1", "R@5", "R@10", "95%", "median", "ms"), _rows(report))


def _rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            point["decode"], point["steps"], *(f"{100 * point[f'R@{k}']:.1f}" for k in (1, 5, 10)),
            " - ".join(f"{100 * bound:.1f}" for bound in point["interval"]["R@10"]),
            f"{point['median_rank']:g}", f"{1000 * point['seconds_per_query']:.1f}",
        )
        for point in report["points"]
    ]  # fmt: skip
