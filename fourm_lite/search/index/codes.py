"""A vector as its token ids: packed to the bits that they need, decoded while searching.

16 codes of a codebook of 8,192 take 26 bytes where 768 float32 take 3,072. The price is a decode
of every row at every search, so this is for large, seldom-asked or small-disk indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.exact import Block, RowIds, unit_vectors
from fourm_lite.unit import Floats

Codes = npt.NDArray[np.uint16]
Decode = Callable[[Codes], Floats]
"""uint16[n, T] -> float32[n, E]: the tokenizer's decoder."""


def check_codes(codes: Any, count: int, codebook_size: int | None) -> Codes:
    """The codes as uint16[N, T].

    Raises:
        ShapeError: not whole numbers [N, T] with one row an id
        ConfigError: a code is outside the codebook
    """
    array = np.asarray(codes)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.shape[1]:
        raise ShapeError(f"codes are whole numbers [N, T], got {array.dtype}{list(array.shape)}")
    if len(array) != count:
        raise ShapeError(f"{count} ids came with {len(array)} rows of codes")
    limit = codebook_size or 1 << 16
    if array.size and (array.min() < 0 or array.max() >= limit):
        raise ConfigError(
            f"codes lie in 0..{limit - 1}, got {array.min()}..{array.max()}; "
            "give codebook_size= of their tokenizer when the index is created"
        )
    return array.astype(np.uint16)


def pack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Codes as bytes, ``bits`` bits each, most significant first.

    Shapes:
        codes: uint16[N, T], each below 2**bits
        returns: uint8[N, ceil(T * bits / 8)]
    """
    places = np.arange(bits - 1, -1, -1, dtype=np.uint16)
    each = (codes[:, :, None] >> places) & 1  # [N, T, bits]
    return np.packbits(each.astype(np.uint8).reshape(len(codes), -1), axis=1)


def unpack(packed: npt.NDArray[np.uint8], bits: int, num_codes: int) -> Codes:
    """The codes that ``pack`` made these bytes of."""
    flat = np.unpackbits(packed, axis=1, count=bits * num_codes)
    each = flat.reshape(len(packed), num_codes, bits).astype(np.uint32)
    return (each @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint32))).astype(np.uint16)


@dataclass(frozen=True)
class CodeStore:
    """How codes lie in an Arrow column.

    An index of vectors keeps them as a list of uint16, which any Arrow tool reads. A codes-only
    index packs them, if it knows the size of the codebook.
    """

    codebook_size: int | None
    packed: bool

    @property
    def bits(self) -> int:
        """Bits of one code; at least 8, so that the bytes of a row tell how many codes it has."""
        return max(8, ((self.codebook_size or 1 << 16) - 1).bit_length())

    def to_arrow(self, codes: Codes) -> Any:
        """An Arrow array with one value a row."""
        import pyarrow as pa

        if not self.packed:
            return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])
        rows = pack(codes, self.bits)
        kind = pa.binary(rows.shape[1])
        return pa.FixedSizeBinaryArray.from_buffers(
            kind, len(rows), [None, pa.py_buffer(rows.tobytes())]
        )

    def from_arrow(self, array: Any) -> Codes:
        """The codes of an Arrow array.

        Raises:
            ConfigError: a row has none
        """
        if array.null_count:
            row = array.is_null().to_pylist().index(True)
            raise ConfigError(
                f"row {row} of {len(array)} has no codes ({array.null_count} are so): they were "
                "added without; ask for others, or give their codes with upsert"
            )
        if not self.packed:
            width = array.type.list_size
            return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        width = array.type.byte_width
        start = array.offset * width
        raw = np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width]
        return unpack(raw.reshape(-1, width), self.bits, width * 8 // self.bits)


def decoded(
    rows: Iterable[tuple[RowIds, Codes]], decode: Decode, width: int | None = None
) -> Iterator[Block]:
    """Blocks of unit vectors from batches of codes; holds one batch at a time.

    Raises:
        ShapeError: the decoder's answer is not float[n, E]
        ConfigError: it is not finite
    """
    for row_ids, codes in rows:
        yield Block(row_ids, unit_vectors(decode(codes), len(row_ids), width))
