"""`fourm-lite index`: a folder of photos becomes an index; run it again to continue or refresh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_facts, print_json, say
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import (
    AnyModel,
    BatchSize,
    Center,
    Decode,
    Device,
    Dtype,
    Gallery,
    Json,
    Target,
    TextTokenizer,
    Tokenizers,
    dtype_of,
)
from fourm_lite.cli.words import Argument, Option
from fourm_lite.search.index.ingest import IngestReport


def index(
    photos: Annotated[list[Path], Argument("Folders, .tar shards, .parquet, .jsonl or pictures.")],
    out: Annotated[str, Option("--out", "-o", help="The index: a folder, or s3://...")],
    model: AnyModel = "mini",
    gallery: Gallery = "model",
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    decode: Decode = "expected",
    center: Center = True,
    codes_only: Annotated[
        bool, Option("--codes-only", help="Store codes instead of vectors: small, slower to ask.")
    ] = False,
    workers: Annotated[int, Option("--workers", help="Threads that read photos.", min=1)] = 2,
    batch_size: BatchSize = 32,
    commit_rows: Annotated[
        int, Option("--commit-rows", help="About how many photos a kill can cost.", min=1)
    ] = 256,
    dtype: Dtype = None,
    device: Device = None,
    prune: Annotated[bool, Option("--prune", help="Delete rows whose photo is gone.")] = False,
    prefix: Annotated[str, Option("--prefix", help="Put before every id.")] = "",
    licence: Annotated[str | None, Option("--licence", help="Of the photos, written down.")] = None,
    as_json: Json = False,
) -> None:
    """Index photos, to search them by words, pictures or any modality.

    Only what is new or changed is embedded, so a run that was stopped goes on when it is started
    again. Files that cannot be read are listed with the reason. What one does with an index
    besides: `fourm-lite index info|check|compact|calibrate IDX`.

    Raises:
        FourMError: the model or a source cannot be opened, or the index is of another space
    """
    from fourm_lite.search.gallery import Ingest, index_photos, open_index
    from fourm_lite.search.spaces import open_space

    space = open_space(
        model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    opened = open_index(out, space, codes_only=codes_only, licence=licence)
    how = Ingest(workers, batch_size, commit_rows, prune, prefix)
    with _progress() as told:
        report = index_photos(photos, opened, space, how, progress=told)
    if as_json:
        print_json({"index": out, "space": space.name, "rows": len(opened), **report.to_dict()})
        return
    print_report(out, len(opened), report)


def print_report(out: str, rows: int, report: IngestReport) -> None:
    """What a run did, and each file that was left out with the reason."""
    done = {n: getattr(report, n) for n in ("added", "changed", "updated", "unchanged", "removed")}
    gone = report.missing - report.removed
    print_facts(
        {
            "index": out,
            "rows": rows,
            **{n: count or None for n, count in done.items()},
            "gone": f"{gone} photos of the index are not here; --prune deletes them" * bool(gone)
            or None,
            "unreadable": len(report.unreadable) or None,
            "left empty": f"{len(report.left_empty)} values" if report.left_empty else None,
            "rate": f"{report.rate:.1f} photos a second",
        }
    )
    for skipped in report.unreadable:
        say(f"not indexed: {skipped.uri}: {skipped.reason}")
    for value in report.left_empty:
        say(f"left empty: {value.uri}: {value.reason}")


@contextmanager
def _progress() -> Iterator[Any]:
    with count_progress("photos") as counts:

        def tell(report: IngestReport) -> None:
            counts.tell("photos", report.seen, 0, f"{report.rate:.1f}/s")

        yield tell
