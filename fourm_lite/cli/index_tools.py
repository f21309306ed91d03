"""What one does with an index besides asking it: look, measure, tidy up, calibrate."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.search_options import (
    Device,
    IndexModel,
    IndexPath,
    Json,
    RerankGiven,
    file_of,
)
from fourm_lite.cli.words import Option
from fourm_lite.errors import ConfigError
from fourm_lite.reading.regular import read_text

MOST_HOURS = 1e6
"""Older than any version; a `timedelta` takes no more than 2e10."""


def index_info(index: IndexPath, as_json: Json = False) -> None:
    """Show what an index is: its rows, its space, who made it.

    Raises:
        ConfigError: there is no index
    """
    from fourm_lite.search.index.confidence import MEANINGS
    from fourm_lite.search.index.index import Index

    info = Index.open(index).info()
    if as_json:
        print_json(info)
        return
    manifest = info.pop("manifest")
    facts = {n: manifest[n] for n in ("space", "kind", "model", "tokenizer", "licence")}
    inside = ("rerank_calibration", "vocabulary")
    facts |= {n: v for n, v in manifest["extra"].items() if n not in inside}
    facts |= {f"{name} fingerprint": value for name, value in manifest["fingerprints"].items()}
    stored = manifest["calibration"]
    facts["calibrated"] = stored is not None
    if stored is not None:
        facts["probability"] = MEANINGS.get(stored.get("meaning", ""), "of a right answer")
    info["columns"] = ", ".join(info["columns"])
    print_facts({**info, **facts})


def index_check(
    index: IndexPath,
    k: Annotated[int, Option("-k", help="Neighbours a query.", min=1)] = 10,
    queries: Annotated[int, Option("--queries", help="Rows drawn as queries.", min=1)] = 100,
    build: Annotated[
        str | None, Option("--build", help="Build first: ivf_rq, ivf_sq, ivf_pq or ivf_hnsw_sq.")
    ] = None,
    partitions: Annotated[int | None, Option("--partitions", help="Of the ANN index.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what approximate search costs in recall, against exact search.

    Raises:
        ConfigError: no approximate index was built
    """
    import dataclasses

    from fourm_lite.search.index.index import Index

    opened = Index.open(index)
    if build is not None:
        opened.build_ann(build, partitions=partitions)  # type: ignore[arg-type]
    facts = dataclasses.asdict(opened.check(k=k, queries=queries))
    print_json(facts) if as_json else print_facts(facts)


def index_compact(
    index: IndexPath,
    keep_hours: Annotated[
        float, Option("--keep-hours", help="Keep versions that are younger.", min=0)
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Join small files and drop old versions.

    Raises:
        ConfigError: there is no index
    """
    from fourm_lite.search.index.index import Index

    opened = Index.open(index)
    before = opened.info()["bytes"]
    opened.compact(keep=timedelta(hours=min(MOST_HOURS, keep_hours)))
    facts: dict[str, Any] = {"before": before, "after": opened.info()["bytes"], "rows": len(opened)}
    print_json(facts) if as_json else print_facts(facts)


def index_calibrate(
    index: IndexPath,
    data: Annotated[
        Path | None,
        Option("--data", help="Folder with captions.jsonl; without it: as the model was fitted."),
    ] = None,
    split: Annotated[str, Option("--split", help="Which lines of it.")] = "val",
    rerank: Annotated[
        int, Option("--rerank", help="Also learn how to rerank so many hits, and how sure.", min=0)
    ] = 0,
    rerank_given: RerankGiven = None,
    samples: Annotated[
        int, Option("--samples", help="Not used any more: no vectors are drawn.", min=0)
    ] = 0,
    absent: Annotated[
        Path | None, Option("--absent", help="Texts of things the index lacks, one a line.")
    ] = None,
    threshold: Annotated[
        float, Option("--threshold", help="Below it: no good match.", min=0, max=1)
    ] = 0.5,
    model: IndexModel = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Learn whether an answer shows what was asked for, from photos with captions.

    The probability is stored in the index and told with every answer to words. Without --data it is
    the one that is kept beside the model, fitted to what this index answers to things that it
    hardly has. With --rerank also learns how hits are reranked.

    Raises:
        FourMError: no caption's photo is in the index, or all answers are right or wrong
    """
    from fourm_lite.evaluate.caption_sets import captioned
    from fourm_lite.search.calibrate import calibrate_answers, calibrate_by_model
    from fourm_lite.search.engine import Search

    if data is None and (rerank or absent is not None):
        raise ConfigError("--rerank and --absent need photos with captions: give --data")
    search = Search.open(index, model, device=device)
    if data is None:
        found = calibrate_by_model(search.index, search.space, threshold=threshold)
        facts: dict[str, Any] = {"from": "the model", "threshold": threshold}
        facts |= {"queries": found.queries, "evidence": ", ".join(found.names)}
    else:
        asked = captioned(search.index, search.space, data, split)
        done = calibrate_answers(
            search.index, search.space, asked, foreign=_lines(absent), threshold=threshold,
            depth=rerank, given=rerank_given,  # type: ignore[arg-type]
        )  # fmt: skip
        facts = {**done.report.to_dict(), "threshold": threshold, "rerank_weights": done.weights}
        if done.share_reranked is not None:
            facts["reranked_share_right"] = done.share_reranked
    print_json(facts) if as_json else print_facts(facts)


def _lines(path: Path | None) -> list[str]:
    """The lines of a text file that hold something."""
    if path is None:
        return []
    lines = read_text(file_of(str(path), "--absent")).splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"--absent expects a text a line, {path} holds none")
    return found
