"""`fourm-lite index`: photos become an index; run it again to continue; and the index's tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import cluster_of, dtype_of, file_of, present, tell_precision
from fourm_lite.cli.output import Told, deliver, print_facts, progress, say
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.reading.regular import read_text

if TYPE_CHECKING:
    from fourm_lite.search.index.ingest import IngestReport

MOST_HOURS = 1e6
"""Older than any version; a `timedelta` takes no more than 2e10."""
OF_MODEL_ONLY = (
    "fitted on photos like those that the model learned from: on photos of another kind it may be "
    "sure of wrong ones. Photos of yours with captions (--data FOLDER) make it fit yours"
)
NAMED = 3
"""Files that are listed by name."""


def index(
    photos: Annotated[list[Path], typer.Argument(callback=present)],
    out: Annotated[str, typer.Option("--out", "-o")],
    model: opt.AnyModel = "mini",
    gallery: opt.Gallery = "model",
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    think: opt.Think = None,
    decode: opt.Decode = "expected",
    center: opt.Center = True,
    codes_only: Annotated[bool, typer.Option("--codes-only")] = False,
    workers: opt.Workers = 2,
    batch_size: opt.BatchSize = 32,
    commit_rows: Annotated[int, typer.Option(min=1)] = 256,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    prune: Annotated[bool, typer.Option("--prune")] = False,
    prefix: str = "",
    licence: str | None = None,
    gps: Annotated[bool, typer.Option("--gps")] = False,
    engine: opt.Engine = "local",
    address: opt.Address = None,
    worker_cpus: opt.WorkerCpus = 1.0,
    worker_gpus: opt.WorkerGpus = 0.0,
    as_json: opt.Json = None,
) -> None:
    """Index photos, to search them by words, pictures or any modality.

    Only what is new or changed is embedded, so a run that was stopped goes on when it is started
    again. Files that cannot be read are listed with the reason. Other commands for an
    index: `fourm-lite index info|build|check|compact|calibrate IDX`.

    Args:
        photos: The photos to index: folders, pictures, .tar shards, .parquet or .jsonl lists.
        out: Write the index to this folder, or to s3://...
        codes_only: Store codes instead of vectors, which is smaller and slower to search.
        commit_rows: Write after about this many photos; a run that is killed loses no more.
        prune: Delete rows whose photo is no longer there.
        prefix: Put this text before every photo's id.
        licence: Write down that the photos are under this licence.
        gps: Also store where photos were taken: latitude and longitude.

    Raises:
        FourMError: the model or a source cannot be opened, or the index is of another space
    """
    from fourm_lite.photos.source_parts import other_files
    from fourm_lite.search.gallery import Ingest, index_photos, open_index
    from fourm_lite.search.index.manifest import read_manifest, remove_rowless
    from fourm_lite.search.scale import Engine
    from fourm_lite.search.spaces import open_space

    tell_precision(dtype, model, device)
    cluster = cluster_of(engine, address, workers, worker_cpus, worker_gpus)
    opener = partial(
        open_space, model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, text_tokenizer=text_tokenizer, think=think or (), device=device,
        dtype=dtype_of(dtype),
    )  # fmt: skip
    is_new, space = read_manifest(out) is None, opener()
    opened = open_index(out, space, codes_only=codes_only, licence=licence)
    how = Ingest(workers, batch_size, commit_rows, prune, prefix, gps)
    where = None if cluster is None else Engine(cluster, opener)
    try:
        with progress("photos") as told:
            tell = _counted(told, photos)
            report = index_photos(photos, opened, space, how, engine=where, progress=tell)
    except ConfigError:  # there was nothing to index
        if is_new:
            remove_rowless(opened.path)
        raise
    facts = {"index": out, "space": space.name, "rows": len(opened), **report.to_dict()}
    others = other_files(photos) if space.reads == "pictures" else []
    facts["other_files"] = others
    deliver(facts, as_json, lambda: print_report(out, len(opened), report, others))


def print_report(out: str, rows: int, report: IngestReport, others: Sequence[str] = ()) -> None:
    """What a run did, each photo that was left out with the reason, and files that are none."""
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
            "no photos": _named(others) if others else None,
            "rate": f"{report.rate:.1f} photos a second",
        }
    )
    for skipped in report.unreadable:
        say(f"not indexed: {skipped.uri}: {skipped.reason}")
    for value in report.left_empty:
        say(f"left empty: {value.uri}: {value.reason}")


def _named(files: Sequence[str]) -> str:
    """The first of some files by name, and how many more there are."""
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return f"{', '.join(files[:NAMED])}{more}: not read"


def _counted(told: Told, photos: Sequence[Path]) -> Callable[[IngestReport], None]:
    """Tells of the photos that are done; how many there are is counted on the side."""
    total = [0]
    if told.is_shown:
        Thread(target=_count, args=(photos, total), daemon=True).start()
    return lambda report: told.tell("photos", report.seen, total[0], f"{report.rate:.1f} a second")


def _count(photos: Sequence[Path], total: list[int]) -> None:
    """Lists folders and lists once more; archives and what is elsewhere are not counted."""
    from fourm_lite.photos.item import is_tar
    from fourm_lite.photos.sources import open_sources

    if any(is_tar(path.name) or ":/" in str(path) for path in photos):
        return
    with suppress(FourMError, OSError):  # what is wrong with a source is told where it is read
        total[0] = sum(1 for _ in open_sources(photos))


def index_info(index: opt.IndexPath, as_json: opt.Json = None) -> None:
    """Show what an index is: its rows, its space, who made it.

    Raises:
        ConfigError: there is no index
    """
    from fourm_lite.search.index.index import Index

    info = Index.open(index).info()
    deliver(info, as_json, lambda: _print_index(info))


def _print_index(info: dict[str, Any]) -> None:
    from fourm_lite.search.calibration.probability import MEANINGS

    info = dict(info)
    manifest = info.pop("manifest")
    facts = {n: manifest[n] for n in ("space", "kind", "model", "tokenizer", "licence")}
    inside = ("rerank_calibration", "vocabulary", "confidence_of_model")
    facts |= {n: v for n, v in manifest["extra"].items() if n not in inside}
    facts |= {f"{name} fingerprint": value for name, value in manifest["fingerprints"].items()}
    stored = manifest["calibration"]
    facts["calibrated"] = stored is not None
    if stored is not None:
        facts["probability"] = MEANINGS.get(stored.get("meaning", ""), "of a right answer")
    info["columns"] = ", ".join(info["columns"])
    print_facts({**info, **facts})


Partitions = Annotated[
    int | None,
    typer.Option("--partitions", help="Divide the approximate index into this many parts."),
]


def index_check(
    index: opt.IndexPath,
    k: Annotated[int, typer.Option("-k", min=1)] = 10,
    queries: Annotated[int, typer.Option(min=1)] = 100,
    build: str | None = None,
    partitions: Partitions = None,
    as_json: opt.Json = None,
) -> None:
    """Measure what approximate search costs in recall, against exact search.

    Args:
        k: Compare this many neighbours of each query.
        queries: Draw this many rows as queries.
        build: Build an approximate index of this kind first, as `index build` does.

    Raises:
        ConfigError: no approximate index was built
    """
    import dataclasses

    from fourm_lite.search.index.index import Index

    opened = Index.open(index)
    if build is not None:
        opened.build_ann(build, partitions=partitions)  # type: ignore[arg-type]
    facts = dataclasses.asdict(opened.check(k=k, queries=queries))
    deliver(facts, as_json, lambda: print_facts(facts))


def index_build(
    index: opt.IndexPath,
    kind: str = "ivf_rq",
    partitions: Partitions = None,
    as_json: opt.Json = None,
) -> None:
    """Build an approximate index over the vectors, so that large galleries answer fast.

    It says first about how much memory it takes. `fourm-lite index check` measures
    afterwards what it costs in recall.

    Args:
        kind: Build this kind: ivf_rq, ivf_sq, ivf_pq or ivf_hnsw_sq.

    Raises:
        ConfigError: there is no index, or it holds too few rows for that kind
    """
    from fourm_lite.search.index.ann import build_bytes
    from fourm_lite.search.index.index import Index

    opened = Index.open(index)
    needed = build_bytes(len(opened), opened.width or 0, partitions)
    say(f"{len(opened)} rows: the build takes about {needed / 2**20:.0f} MiB", aside=True)
    opened.build_ann(kind, partitions=partitions)  # type: ignore[arg-type]
    facts = {"index": index, "rows": len(opened), "kind": kind}
    deliver(facts, as_json, lambda: print_facts(facts))


def index_compact(
    index: opt.IndexPath,
    keep_hours: Annotated[float, typer.Option(min=0)] = 1.0,
    as_json: opt.Json = None,
) -> None:
    """Join small files and drop old versions.

    Args:
        keep_hours: Keep versions that are younger than this.

    Raises:
        ConfigError: there is no index
    """
    from fourm_lite.search.index.index import Index

    opened = Index.open(index)
    before = opened.info()["bytes"]
    opened.compact(keep=timedelta(hours=min(MOST_HOURS, keep_hours)))
    facts: dict[str, Any] = {"before": before, "after": opened.info()["bytes"], "rows": len(opened)}
    deliver(facts, as_json, lambda: print_facts(facts))


def index_calibrate(
    index: opt.IndexPath,
    data: Annotated[Path | None, typer.Option(callback=present)] = None,
    split: opt.Split = "val",
    rerank: Annotated[int, typer.Option(min=0)] = 0,
    rerank_given: opt.RerankGiven = None,
    samples: Annotated[int, typer.Option("--samples", hidden=True, min=0)] = 0,  # not read any more
    absent: Annotated[Path | None, typer.Option(callback=present)] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    model: opt.IndexModel = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    as_json: opt.Json = None,
) -> None:
    """Learn whether an answer shows what was asked for, from photos with captions.

    The probability is stored in the index and given with every answer to words. Without --data it
    is the model's own, adapted to what this index answers to questions for things that it hardly
    has; then queries of one or two words get none. --rerank also learns how hits are reranked.

    Args:
        data: Learn from the photos with captions in this folder (captions.jsonl).
        rerank: Also learn how to rerank this many hits, and how sure that answer is.
        absent: Read from this file texts of things that the index lacks, one on each line.
        threshold: Call an answer 'no good match' where its probability is below this.

    Raises:
        FourMError: no caption's photo is in the index, or all answers are right or wrong
    """
    from fourm_lite.evaluate.caption_sets import captioned
    from fourm_lite.search.calibration.calibrate import calibrate_answers, calibrate_by_model
    from fourm_lite.search.engine import Search

    if data is None and (rerank or absent is not None):
        raise ConfigError("--rerank and --absent need photos with captions: give --data")
    search = Search.open(index, model, device=device, dtype=dtype_of(dtype))
    if data is None:
        found = calibrate_by_model(search.index, search.space, threshold=threshold)
        facts: dict[str, Any] = {"from": "the model", "threshold": threshold}
        facts |= {"queries": found.queries, "evidence": ", ".join(found.names)}
        say(OF_MODEL_ONLY, aside=True)
    else:
        asked = captioned(search.index, search.space, data, split)
        done = calibrate_answers(
            search.index, search.space, asked, foreign=_lines(absent), threshold=threshold,
            depth=rerank, given=rerank_given,  # type: ignore[arg-type]
        )  # fmt: skip
        facts = {**done.report.to_dict(), "threshold": threshold, "rerank_weights": done.weights}
        if done.share_reranked is not None:
            facts["reranked_share_right"] = done.share_reranked
    deliver(facts, as_json, lambda: print_facts(facts))


def _lines(path: Path | None) -> list[str]:
    """The lines of a text file that hold something."""
    if path is None:
        return []
    lines = read_text(file_of(str(path), "--absent")).splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"--absent expects a text a line, {path} holds none")
    return found
