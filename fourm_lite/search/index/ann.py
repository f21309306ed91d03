"""Approximate search by Lance for what does not fit the memory, and what it costs in recall.

An approximate index is built by one call and used past ``memory_limit``; ``recall`` measures it
against exact search on the same rows. Rows that were added after the build are still found: Lance
scans them until ``compact`` takes them in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fourm_lite.errors import ConfigError, check_choice
from fourm_lite.search.index.exact import Block, Nearest, RowIds, nearest
from fourm_lite.search.index.lance_calls import reading
from fourm_lite.search.index.storage import Rows, Snapshot
from fourm_lite.unit import Floats

AnnKind = Literal["ivf_rq", "ivf_pq", "ivf_hnsw_sq", "ivf_sq"]
KINDS: tuple[AnnKind, ...] = ("ivf_rq", "ivf_pq", "ivf_hnsw_sq", "ivf_sq")
MIN_ROWS = 256
"""Fewer rows cannot train the 256 centres of product quantisation."""

COLUMN = "vector"
SAMPLES, ITERATIONS = 64, 15
"""Training rows a centre, and rounds: a quarter and a third of Lance's, for the same recall."""


@dataclass(frozen=True, kw_only=True)
class Ann:
    """How approximate search spends its time.

    Units:
        ``probes`` partitions are looked into; the ``refine`` * k best of them are scored again
        with their full vectors
    """

    probes: int = 20
    refine: int = 50


@dataclass(frozen=True, kw_only=True)
class RecallCheck:
    """What approximate search finds of what exact search finds.

    Units:
        ``recall`` is the mean share of the k exact neighbours that were found; times are
        milliseconds a query: approximate search
        asks one at a time, exact search all in one run over the rows
    """

    recall: float
    k: int
    queries: int
    rows: int
    probes: int
    refine: int
    ann_ms: float
    exact_ms: float

    def to_dict(self) -> dict[str, float]:
        """The fields by name, for JSON."""
        return asdict(self)


def build(rows: Rows, kind: AnnKind, *, width: int, partitions: int | None = None) -> None:
    """Builds the approximate index over all rows; replaces an older one.

    ``ivf_rq`` (one bit a dimension) is built fastest by far and, scored again with full vectors,
    finds as much as the others; ``ivf_sq`` (a byte a dimension) needs less refining.

    Raises:
        ConfigError: an unknown kind, or fewer than 256 rows
    """
    check_choice("kind", kind, of=KINDS)
    count = rows.newest().count()
    if count < MIN_ROWS:
        raise ConfigError(
            f"an approximate index needs at least {MIN_ROWS} rows, the index has {count}; "
            "exact search is faster there"
        )
    options: dict[str, Any] = {"metric": "cosine", "sample_rate": SAMPLES}
    options["max_iterations"] = ITERATIONS
    options["num_partitions"] = partitions or max(1, round(math.sqrt(count)))
    if kind == "ivf_pq":
        options["num_sub_vectors"] = _sub_vectors(width)
    rows.build_index(COLUMN, kind.upper(), **options)


def build_bytes(rows: int, width: int, partitions: int | None = None) -> int:
    """About how much memory a build takes: the rows that train the centres, and the centres.

    >>> build_bytes(50_000_000, 768) // 2**20
    2733
    """
    centres = partitions or max(1, round(math.sqrt(rows)))
    return 4 * width * (min(rows, 2 * SAMPLES * centres) + 2 * centres)


def is_built(rows: Snapshot) -> bool:
    """Whether the vectors have an approximate index."""
    if not rows.exists:
        return False
    return any(COLUMN in i.field_names for i in reading(None, rows.handle.describe_indices))


def search(rows: Snapshot, queries: Floats, k: int, where: str | None, ann: Ann) -> list[Nearest]:
    """The approximately nearest rows of every query."""
    return [_search_one(rows, query, k, where, ann) for query in queries]


def recall(
    found: Sequence[RowIds], exact: Sequence[RowIds], own: Sequence[int] | None = None
) -> float:
    """The mean share of the exact rows that were found; ``own`` rows do not count."""
    shares = []
    for place, truth in enumerate(exact):
        left_out = set() if own is None else {own[place]}
        wanted = {int(i) for i in truth} - left_out
        if wanted:
            got = {int(i) for i in found[place]}
            shares.append(len(wanted & got) / len(wanted))
    return float(np.mean(shares)) if shares else 1.0


def check(
    rows: Snapshot, blocks: Iterable[Block], own: RowIds, queries: Floats, k: int, ann: Ann
) -> RecallCheck:
    """Recall and time of approximate against exact search, for rows ``own`` as queries."""
    start = time.perf_counter()
    found = search(rows, queries, k + 1, None, ann)
    middle = time.perf_counter()
    exact = nearest(blocks, queries, k + 1)
    end = time.perf_counter()
    share = recall([n.row_ids for n in found], [n.row_ids for n in exact], own.tolist())
    each = 1000 / max(1, len(queries))
    return RecallCheck(
        recall=share,
        k=k,
        queries=len(queries),
        rows=rows.count(),
        probes=ann.probes,
        refine=ann.refine,
        ann_ms=(middle - start) * each,
        exact_ms=(end - middle) * each,
    )


def _search_one(rows: Snapshot, query: Floats, k: int, where: str | None, ann: Ann) -> Nearest:
    asked = {"column": COLUMN, "q": query, "k": k, "metric": "cosine"}
    asked |= {"nprobes": ann.probes, "refine_factor": ann.refine}
    options = {"nearest": asked, "columns": ["_distance"], "with_row_id": True}
    table = reading(
        where, lambda: rows.handle.scanner(filter=where, prefilter=True, **options).to_table()
    )
    row_ids = table.column("_rowid").to_numpy().astype(np.uint64)
    scores = (1.0 - table.column("_distance").to_numpy()).astype(np.float32)
    order = np.lexsort((row_ids, -scores))
    return Nearest(row_ids[order], scores[order])


def _sub_vectors(width: int) -> int:
    # Eight dimensions a byte keeps recall on unit vectors; Lance is fast where it divides evenly.
    for parts in range(max(1, width // 8), 0, -1):
        if width % parts == 0:
            return parts
    return 1
