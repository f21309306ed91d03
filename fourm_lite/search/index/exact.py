"""Exact nearest neighbours by one matrix product, and how ties are ordered.

The order is total: higher score first, then the earlier row. So a search gives the same answer
however the rows are cut into blocks. NumPy only; knows nothing of storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.unit import Floats

RowIds = npt.NDArray[np.uint64]

BLOCK_SCORES = 1 << 24
"""Scores held at once when many queries are asked together (64 MiB of float32)."""


@dataclass(frozen=True)
class Block:
    """A run of rows of an index, in row order.

    Shapes:
        row_ids: uint64[N], ascending
        vectors: float32[N, E], unit length
    """

    row_ids: RowIds
    vectors: Floats


@dataclass(frozen=True)
class Nearest:
    """The best rows of one query, best first.

    Shapes:
        row_ids: uint64[K]
        scores: float32[K], cosine
    """

    row_ids: RowIds
    scores: Floats

    @classmethod
    def none(cls) -> Nearest:
        """No rows."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.float32))


def top_positions(scores: Floats, k: int) -> npt.NDArray[np.intp]:
    """Positions of the k largest scores, best first; of equal scores the earlier ones.

    >>> top_positions(np.float32([0.2, 0.9, 0.2, 0.9]), 3).tolist()
    [1, 3, 0]
    """
    count = len(scores)
    if k >= count:
        return np.argsort(-scores, kind="stable")
    edge = np.partition(scores, count - k)[count - k]
    above = np.flatnonzero(scores > edge)
    tied = np.flatnonzero(scores == edge)[: k - len(above)]
    chosen = np.sort(np.concatenate([above, tied]))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def nearest(blocks: Iterable[Block], queries: Floats, k: int) -> list[Nearest]:
    """The k nearest rows of every query over all blocks, in bounded memory.

    Shapes:
        queries: float32[Q, E], unit length
        returns: Q answers of at most k rows each
    """
    best = [Nearest.none() for _ in queries]
    for block in blocks:
        for row, scores in _scores(block, queries):
            best[row] = merge(best[row], block.row_ids, scores, k)
    return best


def merge(best: Nearest, row_ids: RowIds, scores: Floats, k: int) -> Nearest:
    """The k best of an earlier answer and of later rows."""
    chosen = top_positions(scores, k)
    if not len(best.scores):
        return Nearest(row_ids[chosen], scores[chosen])
    ids = np.concatenate([best.row_ids, row_ids[chosen]])
    both = np.concatenate([best.scores, scores[chosen]])
    # Earlier rows stand first, so a stable sort keeps the rule for ties.
    order = np.argsort(-both, kind="stable")[:k]
    return Nearest(ids[order], both[order])


def _scores(block: Block, queries: Floats) -> Iterator[tuple[int, Floats]]:
    """Cosines of a block, query by query; many queries share one matrix product."""
    if not len(block.vectors):
        return
    if len(queries) == 1:
        yield 0, block.vectors @ queries[0]
        return
    step = max(1, BLOCK_SCORES // len(block.vectors))
    for start in range(0, len(queries), step):
        table = queries[start : start + step] @ block.vectors.T  # [step, N]
        for offset, scores in enumerate(table):
            yield start + offset, scores


UNIT_TOLERANCE = 1e-5


def unit_vectors(vectors: Any, count: int | None, width: int | None) -> Floats:
    """The vectors as float32[N, E] of unit length; those that are so already keep their bits.

    Raises:
        ShapeError: not [N, E], or another width than the index
        ConfigError: a vector is not finite, or zero and so without a direction
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ShapeError(f"vectors are numbers [N, E], got {array.dtype}{list(array.shape)}")
    if count is not None and len(array) != count:
        raise ShapeError(f"{count} ids came with {len(array)} vectors; give one vector an id")
    if width is not None and array.shape[1] != width:
        raise ShapeError(
            f"the index holds vectors of width {width}, got width {array.shape[1]}; "
            "embed with the model that made the index"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    norms = _norms(array)
    _check_norms(norms, array)
    off = np.abs(norms - 1) > UNIT_TOLERANCE
    if off.any():
        divisor = np.where(off, norms, 1.0)[:, None]
        # Vectors near the ends of float32 need the wider division; it costs time, so only they.
        tame = norms[off].min() > 1e-30
        array = array / (divisor.astype(np.float32) if tame else divisor)
    return array.astype(np.float32, copy=False)


def _norms(array: Floats) -> npt.NDArray[np.float64]:
    """Lengths, in double precision where the squares leave the range of float32."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.einsum("ne,ne->n", array, array).astype(np.float64)
    odd = ~((squares > 1e-30) & (squares < 1e30))
    if odd.any():
        with np.errstate(invalid="ignore"):
            squares[odd] = (array[odd].astype(np.float64) ** 2).sum(axis=1)
    return np.sqrt(squares)


def _check_norms(norms: npt.NDArray[np.float64], array: Floats) -> None:
    finite = np.isfinite(norms)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        bad = array[row][~np.isfinite(array[row])]
        what = str(bad[0]) if len(bad) else "a value too large"
        raise ConfigError(
            f"vector {row} is not finite (it holds {what}); {int((~finite).sum())} of "
            f"{len(norms)} are so: check the model's input or its precision"
        )
    if len(norms) and not norms.all():
        row = int(np.flatnonzero(norms == 0)[0])
        raise ConfigError(f"vector {row} is zero and has no direction; leave that item out")
