"""From pictures to an index that `fourm_lite.search` can ask: made, continued, calibrated.

The manifest of an index says which model made its rows, so that a later run continues with the
same one and a search refuses another space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourm_lite.errors import ConfigError
from fourm_lite.retrieval.calibrate import CalibrationReport, calibrate
from fourm_lite.retrieval.index import Index
from fourm_lite.retrieval.ingest import IngestReport, index_items
from fourm_lite.retrieval.manifest import read_manifest, write_manifest
from fourm_lite.retrieval.sources import open_sources
from fourm_lite.search.likelihood import (
    DEFAULT_WEIGHTS,
    Likelihood,
    LikelihoodReranker,
    codes_of,
    fit_weights,
    model_weights,
)
from fourm_lite.search.spaces import Item, ModelSpace, Space

if TYPE_CHECKING:
    from PIL.Image import Image

RERANK = "rerank"
"""Where the manifest's `extra` keeps fitted weights."""
LIKELIHOOD = "likelihood"
"""Evidence of a calibration: mean log p(query's text | first hit)."""


@dataclass(frozen=True)
class Ingest:
    """How pictures are read and embedded; see `retrieval.ingest.index_items`."""

    workers: int = 1
    batch_size: int = 32
    commit_rows: int = 512
    prune: bool = False
    prefix: str = ""


def open_index(
    path: str | Path, space: Space, *, codes_only: bool = False, licence: str | None = None
) -> Index:
    """The index at a path, made if it is not there, checked against the space if it is.

    Raises:
        ConfigError: the index was made by another model, network or tokenizer
    """
    manifest = read_manifest(str(Path(path).expanduser()) if "://" not in str(path) else str(path))
    decode = space.decode_codes if isinstance(space, ModelSpace) else None
    if manifest is not None:
        manifest.require_space(space.name)
        manifest.require_fingerprints(space.fingerprints)
        if codes_only != (manifest.kind == "codes"):
            raise ConfigError(
                f"the index at {path} holds {manifest.kind}; choose another place for the other"
            )
        return Index.open(path, decode=decode)
    if codes_only and space.codebook_size is None:
        raise ConfigError(f"'{space.name}' has no codes; a codes-only index needs a 4M model")
    return Index.create(
        path, space=space.name, decode=decode, kind="codes" if codes_only else "vectors",
        width=space.width, codebook_size=space.codebook_size, licence=licence,
        fingerprints=space.fingerprints, **space.provenance(),
    )  # fmt: skip


def index_photos(
    photos: Iterable[str | Path],
    index: Index,
    space: Space,
    how: Ingest | None = None,
    *,
    progress: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Brings an index up to date with folders, tars, Parquet or JSONL; run it again to continue.

    Args:
        photos: see `retrieval.sources.open_sources`
        index: from `open_index`
        space: what embeds the pictures
        how: threads, batch size, what happens to rows whose picture is gone
        progress: called after every block
    """
    how = how or Ingest()
    only_codes = index.manifest.kind == "codes"

    def embed(pictures: list[Image]) -> Any:
        vectors, codes = space.embed_pictures(pictures, batch_size=how.batch_size)
        if codes is None:
            return vectors
        return codes if only_codes else (vectors, codes)

    return index_items(
        open_sources(photos, prefix=how.prefix), embed, index,
        batch_size=how.batch_size, commit_rows=how.commit_rows, workers=how.workers,
        prune=how.prune, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Queries whose right answers are known.

    Args:
        items: the queries
        right: for each the ids that are right
    """

    items: Sequence[Item]
    right: Sequence[Sequence[Any]]


def calibrate_index(
    index: Index, space: Space, truth: Truth, *, threshold: float = 0.5, depth: int = 0
) -> tuple[CalibrationReport, dict[str, float] | None]:
    """Fits and stores the confidence of an index, and with `depth` its weights for reranking.

    The evidence is the first hit's cosine, its margin to the second and, where the model can say
    the queries' texts, the likelihood of the text given the first hit.

    Returns:
        how well the confidence does on held-out queries, and the weights if they were fitted
    """
    vectors = space.embed_items(truth.items)
    more: dict[str, Any] = {}
    if isinstance(space, ModelSpace) and "codes" in index.info()["columns"]:
        found = _evidence(index, space, truth, vectors)
        more = {} if found is None else {LIKELIHOOD: found}
    names = ("score", "margin")
    report = calibrate(index, vectors, truth.right, names=names, more=more, threshold=threshold)
    if not depth:
        return report, None
    weights = fit_index_weights(index, space, truth, vectors, depth)
    extra = {**index.manifest.extra, RERANK: weights}
    index.manifest = dataclasses.replace(index.manifest, extra=extra)
    write_manifest(index.path, index.manifest)
    return report, weights


def _evidence(index: Index, space: ModelSpace, truth: Truth, vectors: Any) -> Any:
    reranker = LikelihoodReranker(Likelihood.of(space))
    first = index.search_many(vectors, 1, columns=["codes"])
    values = []
    for item, hits in zip(truth.items, first, strict=True):
        said = reranker.parts(item, codes_of(hits)).get("caption")
        if said is None:
            return None
        values.append(float(said[0]))
    return np.array(values)


def fit_index_weights(
    index: Index, space: Space, truth: Truth, vectors: Any, depth: int
) -> dict[str, float]:
    """Weights of the reranker's parts, fitted on the first `depth` hits of each query."""
    reranker = LikelihoodReranker(Likelihood.of(space))
    rows: list[dict[str, Any]] = []
    for item, hits in zip(
        truth.items, index.search_many(vectors, depth, columns=["codes"]), strict=True
    ):
        rows.append({**reranker.parts(item, codes_of(hits)), "cosine": hits.scores})
    names = [n for n in DEFAULT_WEIGHTS if all(n in row for row in rows)]
    parts = {n: np.stack([row[n] for row in rows]) for n in names}
    found = index.search_many(vectors, depth, columns=[])
    right = np.array(
        [[i in set(ids) for i in h.ids] for h, ids in zip(found, truth.right, strict=True)]
    )
    return fit_weights(parts, right)


def rerank_weights(extra: Mapping[str, Any], space: Space) -> Mapping[str, float]:
    """The weights that an index stores, else the model's, else the usual ones."""
    stored = extra.get(RERANK)
    if isinstance(stored, Mapping):
        return dict(stored)
    return (model_weights(space) or {}).get("text_to_image", DEFAULT_WEIGHTS)
