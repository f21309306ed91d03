"""`fourm-lite evaluate same-class`: photos find photos of their class (GPR1200), as mAP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.evaluate_retrieval import write_report
from fourm_lite.cli.output import print_facts, require_file
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    AnyModel,
    BatchSize,
    Center,
    Decode,
    Device,
    Dtype,
    Gallery,
    JsonFile,
    Target,
    Tokenizers,
    dtype_of,
)
from fourm_lite.cli.words import Option


def same_class(
    data: Annotated[Path, Option("--data", help="Folder with labels.jsonl, or of classes.")],
    model: AnyModel = "mini",
    split: Annotated[str, Option("--split", help="Which of the photos; all for all.")] = "test",
    gallery: Gallery = "model",
    target: Target = None,
    decode: Decode = "expected",
    center: Center = True,
    tokenizers: Tokenizers = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    out: JsonFile = None,
) -> None:
    """Measure how well photos find photos of their class: mAP by the GPR1200 protocol.

    Every photo is a query, all others of its class are right, and the query itself is left out.

    Raises:
        FourMError: the model or the data cannot be used
    """
    require_file(out, "--json")
    from fourm_lite.evaluate.same_class import evaluate_same_class
    from fourm_lite.search.spaces import open_space

    space = open_space(
        model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    with count_progress("photos") as told:
        report = evaluate_same_class(space, data, split, batch_size=batch_size, progress=told.tell)
    write_report(report, out)
    if out is not None and str(out) == "-":
        return
    protocol, (low, high) = report["protocol"], report["interval"]["mAP"]
    left_out = len(protocol["skipped"]) + len(protocol["left_out_alone_in_class"])
    print_facts(
        {
            "mAP": f"{report['mAP']:.4f} [{low:.4f}, {high:.4f}]",
            **{f"R@{k}": f"{report[f'R@{k}']:.4f}" for k in (1, 5, 10)},
            "photos": f"{protocol['images']} of {protocol['classes']} classes",
            "left out": left_out or None,
            "score": protocol.get("score"),
            "written to": out,
        }
    )
