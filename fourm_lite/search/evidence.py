"""What a model says about how sure an answer is, beside its cosine and margin.

- ``likelihood``: mean log p(query's text | first hit)
- ``spread``: how much sampled vectors of the query differ; a vague query has a large one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from fourm_lite.pipeline.embedding import spread
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood import Likelihood, LikelihoodReranker
from fourm_lite.search.spaces import Item, ModelSpace, Space

LIKELIHOOD, SPREAD = "likelihood", "spread"
SAMPLES = 8
"""Vectors drawn for the spread of a query."""


def spreads(
    space: ModelSpace, items: Sequence[Item], samples: int = SAMPLES, batch_size: int = 16
) -> npt.NDArray[np.float32]:
    """1 minus the length of the mean of sampled unit vectors, float32[N]; see `pipeline.spread`."""
    drawn = dataclasses.replace(space, decode="sample", steps=1, samples=samples)
    parts = []
    for start in range(0, len(items), batch_size):
        raw = drawn.raw_items(items[start : start + batch_size])
        parts.append(spread(space.centre(raw)))
    return np.concatenate(parts)


def query_evidence(
    space: Space, item: Item, first: Hits, names: Collection[str], samples: int = SAMPLES
) -> dict[str, float] | None:
    """The named evidence of one query with its first hit; None where it cannot be had.

    Args:
        space: what embedded the query
        item: the query
        first: its first hit, with codes
        names: of the evidence; score and margin are not asked for here
        samples: as many as the calibration was fitted with
    """
    if not item or not isinstance(space, ModelSpace):
        return None
    found: dict[str, float] = {}
    if LIKELIHOOD in names:
        said = LikelihoodReranker(Likelihood.of(space)).said(item, first)
        if said is None:
            return None
        found[LIKELIHOOD] = float(said[0])
    if SPREAD in names:
        found[SPREAD] = float(spreads(space, [item], samples)[0])
    return found
