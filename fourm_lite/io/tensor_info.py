"""What a safetensors header says of one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of one tensor.

    Units:
        dtype: safetensors' word, such as "F32"
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]
