"""Exact search in two passes: int8 scores of every row, float32 scores of what may be among the k.

Rows and queries are rounded to int8, and how far each lies from what it was rounded from is kept.
By Cauchy and Schwarz a score is then known up to `slack * rest + offset`; a row whose upper bound
is below the k-th lower bound cannot be among the k nearest, so no neighbour is lost. NumKong's
kernels make the products; NumPy the rest.

Of a large index the rounded rows lie beside the table and are mapped; the few rows that are scored
in float32 are fetched from the table (`Fetch`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.search.index.exact import BLOCK_SCORES, Block, Nearest, RowIds, merge, nearest
from fourm_lite.unit import Floats

STEPS = 127
CHUNK = 8192
TURNED = 4096
"""Rows whose products with some 64 queries stay in a core's cache."""
FEW = 5
"""Queries that are faster each by itself, on CPUs without instructions for products of bytes."""
FEWEST = 4096
"""Fewer rows than these are multiplied in float32 at once."""
GROUP = 64
"""The k-th best of the groups' best bounds is a bound for the k-th best row."""

FETCHED = 4096
"""Rows that are fetched from the table at once."""

Positions = npt.NDArray[np.intp]
Fetch = Callable[[Positions], Floats]
"""Places of rows, ascending -> their vectors float32[n, E]."""
PARTS: dict[str, type[np.generic]] = {
    "codes": np.int8, "scales": np.float32, "rests": np.float32, "row_ids": np.uint64
}  # fmt: skip
"""What lies in files beside a large table, a file each, without headers."""


@dataclass(frozen=True)
class Coarse:
    """Vectors rounded to int8.

    Shapes:
        codes: int8[N, E]
        scales: float32[N]; a vector is about `scales * codes`
        rests: float32[N], the length of what the rounding took away, or a little more
    """

    codes: npt.NDArray[np.int8]
    scales: Floats
    rests: Floats

    @classmethod
    def of(cls, vectors: Floats) -> Coarse:
        """Unit vectors float32[N, E] rounded, a chunk at a time."""
        made = cls(np.empty(vectors.shape, np.int8), *np.empty((2, len(vectors)), np.float32))
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            scales = np.abs(vectors[part]).max(axis=1, keepdims=True) / np.float32(STEPS)
            rounded = np.rint(vectors[part] / scales)
            rest = vectors[part] - rounded * scales
            made.codes[part], made.scales[part] = rounded, scales[:, 0]
            made.rests[part] = np.sqrt(np.einsum("ne,ne->n", rest, rest)) * 1.0001 + 1e-6
        return made

    @staticmethod
    def write(blocks: Iterable[Block], folder: Path) -> None:
        """Rounds rows into files of a folder, a block in memory at a time."""
        files = {name: (folder / name).open("wb") for name in PARTS}
        try:
            for block in blocks:
                rounded = Coarse.of(block.vectors)
                for name, file in files.items():
                    part = block.row_ids if name == "row_ids" else getattr(rounded, name)
                    file.write(np.ascontiguousarray(part, PARTS[name]).data)
        finally:
            for file in files.values():
                file.close()

    @classmethod
    def mapped(cls, folder: Path, count: int, width: int) -> tuple[Coarse, RowIds] | None:
        """Rounded rows and row ids as `write` left them; None where they are not whole."""
        found = {}
        for name, kind in PARTS.items():
            shape = (count, width) if name == "codes" else (count,)
            file, size = folder / name, np.dtype(kind).itemsize * int(np.prod(shape))
            if not file.is_file() or file.stat().st_size != size:
                return None
            found[name] = np.memmap(file, kind, "r", shape=shape).view(np.ndarray)
        row_ids: RowIds = found.pop("row_ids")
        return cls(**found), row_ids


def nearest_of(
    block: Block,
    coarse: Coarse | None,
    queries: Floats,
    k: int,
    among: Positions | None = None,
) -> list[Nearest]:
    """The k nearest rows of every query, as float32 brute force finds them.

    Shapes:
        coarse: the block's vectors; None: they are few
        queries: float32[Q, E], unit length
        among: intp[M], ascending: only these rows; None: all
    """
    if coarse is None or (among is not None and len(among) <= FEWEST):
        few = block if among is None else Block(block.row_ids[among], block.vectors[among])
        return nearest([few], queries, k)
    found = []
    for query, places in zip(queries, candidates(coarse, queries, k, among), strict=True):
        if len(places) > len(block.row_ids) // 4 and among is None:  # nearly all alike: no copy
            found += nearest([block], query[None], k)
            continue
        scores = block.vectors[places] @ query
        found.append(merge(Nearest.none(), block.row_ids[places], scores, k))
    return found


def nearest_fetched(
    row_ids: RowIds, coarse: Coarse, fetch: Fetch, queries: Floats, k: int, among: Positions | None
) -> list[Nearest]:
    """`nearest_of`, where the vectors are fetched, so many at a time."""
    found = []
    for query, places in zip(queries, candidates(coarse, queries, k, among), strict=True):
        best = Nearest.none()
        for start in range(0, len(places), FETCHED):
            part = places[start : start + FETCHED]
            best = merge(best, row_ids[part], fetch(part) @ query, k)
        found.append(best)
    return found


def candidates(
    coarse: Coarse, queries: Floats, k: int, among: Positions | None = None
) -> Iterator[Positions]:
    """For every query the rows, ascending, of which one may be among its k nearest."""
    asked = Coarse.of(queries)
    step = max(1, BLOCK_SCORES // max(1, len(coarse.codes)))
    for start in range(0, len(queries), step):
        table = _products(coarse, asked.codes[start : start + step], among)
        for number, scores in enumerate(table, start):
            scores *= asked.scales[number]
            rests = coarse.rests
            if among is not None:
                scores, rests = scores[among], rests[among]
            places = _within(scores, rests, float(asked.rests[number]), k, coarse.codes.shape[1])
            yield places if among is None else among[places]


def _within(scores: Floats, rests: Floats, rest: float, k: int, width: int) -> Positions:
    """Rows whose upper bound reaches the k-th lower bound.

    <x, q> - <x', q'> = <x - x', q> + <x', q - q'>, at most rest(x) |q| + |x'| rest(q) where a
    vector is as long as 1 and its rounded form as 1 + rest(x).
    """
    if k >= len(scores):
        return np.arange(len(scores))
    # sums of `width` float32 products differ by so much at most, and lengths from 1 by 1e-5
    offset = np.float32(rest + width * 1.2e-7 + 1e-4)
    margin = rests * np.float32(1 + rest)
    edge = _kth_largest(scores - margin, k) - 2 * offset
    return np.flatnonzero(scores + margin >= edge)


def _kth_largest(values: Floats, k: int) -> np.float32:
    """The k-th largest of the values, or a number below it."""
    whole = len(values) // GROUP
    if whole > 4 * k:
        values = values[: whole * GROUP].reshape(whole, GROUP).max(axis=1)
    return np.float32(np.partition(values, len(values) - k)[len(values) - k])


def _products(coarse: Coarse, queries: npt.NDArray[np.int8], among: Positions | None) -> Floats:
    """Scores of int8[Q, E] that lack the queries' scales: float32[Q, N].

    The kernel gives [N, Q]; it is turned a chunk at a time, while it is in the cache. Chunks
    without a row of `among` are left as they come.
    """
    multiply = _kernel(queries)
    table = np.empty((len(queries), len(coarse.codes)), np.float32)
    size = TURNED if among is None else TURNED // 4
    chunks = range(-(-len(coarse.codes) // size)) if among is None else np.unique(among // size)
    for chunk in chunks:
        part = slice(chunk * size, (chunk + 1) * size)
        found = np.asarray(multiply(coarse.codes[part]))
        np.multiply(found.T, coarse.scales[part], out=table[:, part], casting="same_kind")
    return table


def _kernel(queries: npt.NDArray[np.int8]) -> Callable[[npt.NDArray[np.int8]], Any]:
    """What multiplies rows int8[n, E] with int8[Q, E], exactly: [n, Q]."""
    import numkong

    if len(queries) <= FEW and _adds_in_16_bits():
        return lambda rows: numkong.cdist(rows, queries, metric="dot")
    packed = numkong.dots_pack(queries)
    return lambda rows: numkong.dots_packed(rows, packed)


@functools.cache
def _adds_in_16_bits() -> bool:
    """Whether the CPU has AVX2 and neither form of VNNI: there NumKong's packed product is slow."""
    import numkong

    known = numkong.get_capabilities()
    return bool(known.get("haswell")) and not any(known.get(n) for n in ("icelake", "alder"))
