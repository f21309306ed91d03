"""What one does with an index besides asking it: look, measure, tidy up, calibrate."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.search_options import Device, IndexModel, IndexPath, Json, RerankGiven
from fourm_lite.cli.words import Option


def index_info(index: IndexPath, as_json: Json = False) -> None:
    """Show what an index is: its rows, its space, who made it.

    Raises:
        ConfigError: there is no index
    """
    from fourm_lite.retrieval.index import Index

    info = Index.open(index).info()
    if as_json:
        print_json(info)
        return
    manifest = info.pop("manifest")
    facts = {n: manifest[n] for n in ("space", "kind", "model", "tokenizer", "licence")}
    facts |= {n: v for n, v in manifest["extra"].items() if n != "rerank_calibration"}
    facts |= {f"{name} fingerprint": value for name, value in manifest["fingerprints"].items()}
    facts["calibrated"] = manifest["calibration"] is not None
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

    from fourm_lite.retrieval.index import Index

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
    from fourm_lite.retrieval.index import Index

    opened = Index.open(index)
    before = opened.info()["bytes"]
    opened.compact(keep=timedelta(hours=keep_hours))
    facts: dict[str, Any] = {"before": before, "after": opened.info()["bytes"], "rows": len(opened)}
    print_json(facts) if as_json else print_facts(facts)


def index_calibrate(
    index: IndexPath,
    data: Annotated[
        Path, Option("--data", help="Folder with captions.jsonl whose photos are in the index.")
    ],
    split: Annotated[str, Option("--split", help="Which lines of it.")] = "val",
    rerank: Annotated[
        int, Option("--rerank", help="Also learn how to rerank so many hits, and how sure.", min=0)
    ] = 0,
    rerank_given: RerankGiven = None,
    samples: Annotated[
        int, Option("--samples", help="Vectors drawn a query; 0: no spread.", min=0)
    ] = 8,
    threshold: Annotated[
        float, Option("--threshold", help="Below it: no good match.", min=0, max=1)
    ] = 0.5,
    model: IndexModel = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Learn how sure an answer is, from captions whose photos are known.

    The probability that the first hit is right is stored in the index and told with every answer;
    with --rerank also that of the reranked order, told where so many hits are reranked.

    Raises:
        FourMError: no caption's photo is in the index, or all answers are right or wrong
    """
    from fourm_lite.search.calibrate import calibrate_index
    from fourm_lite.search.engine import Search
    from fourm_lite.search.truth import captions_of

    search = Search.open(index, model, device=device)
    truth = captions_of(search.index, search.space, data, split)
    done = calibrate_index(
        search.index, search.space, truth, threshold=threshold, samples=samples, depth=rerank,
        given=rerank_given or "codes",  # type: ignore[arg-type]
    )  # fmt: skip
    facts = {**done.report.to_dict(), "threshold": threshold, "rerank_weights": done.weights}
    if done.reranked is not None:
        facts |= {f"reranked_{name}": value for name, value in done.reranked.to_dict().items()}
    print_json(facts) if as_json else print_facts(facts)
