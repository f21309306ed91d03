"""The header of a safetensors file: names, shapes and places of its tensors, and its metadata.

It is checked here in full before anything is mapped: lengths against the file, shapes against byte
ranges, ranges against each other. Reading it costs the header alone, whatever sizes it claims.
"""

from __future__ import annotations

import math
import os
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourm_lite.errors import CheckpointError
from fourm_lite.io.strict_json import MAX_JSON_BYTES, as_object, parse_json

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
MAX_RANK = 16
_FIELDS = {"dtype", "shape", "data_offsets"}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor.

    Units:
        dtype: safetensors' word, such as "F32"
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """All that a safetensors file says before its values begin."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's length.

    Raises:
        CheckpointError: the file is missing or truncated, or its header is not well formed
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = _header_length(path, start, total)
            text = file.read(length)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return parse_header(text, total - 8 - length, str(path))


def parse_header(text: bytes, data_bytes: int, what: str) -> Header:
    """The header in a JSON text, for a file with `data_bytes` bytes of values after it.

    Raises:
        CheckpointError: a field is missing or wrong, ranges overlap or leave holes, or the values
            take more or fewer bytes than the file has
    """
    raw = as_object(parse_json(text, f"the header of {what}"), f"the header of {what}")
    metadata = _metadata(raw.pop("__metadata__", None), what)
    tensors: dict[str, TensorInfo] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in raw.items():
        tensors[name], begin, end = _entry(name, entry, what)
        ranges.append((begin, end, name))
    _check_ranges(ranges, data_bytes, what)
    return Header(tensors, metadata)


def _header_length(path: Path, start: bytes, total: int) -> int:
    if start.startswith(_PICKLES):
        raise CheckpointError(
            f"{path} should be a safetensors file, but holds a pickle; pickles can run code and "
            f"are never read: convert it with `fourm-lite convert {shlex.quote(str(path))} -o OUT`"
        )
    if len(start) < 8:
        raise CheckpointError(f"{path} should be a safetensors file, got only {total} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} claims a header of {length} bytes (at most {MAX_JSON_BYTES} are read); "
            "it is damaged or no safetensors file"
        )
    if length > total - 8:
        raise CheckpointError(
            f"{path} is truncated: its header takes {length} bytes, {total - 8} follow; "
            "fetch it again"
        )
    return int(length)


def _metadata(raw: Any, what: str) -> dict[str, str]:
    if raw is None:
        return {}
    table = as_object(raw, f"'__metadata__' of {what}")
    for key, value in table.items():
        if not isinstance(value, str):
            raise CheckpointError(
                f"'__metadata__' of {what} should hold strings, "
                f"got {type(value).__name__} at {key[:80]!r}"
            )
    return table


def _entry(name: str, entry: Any, what: str) -> tuple[TensorInfo, int, int]:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise CheckpointError(
            f"{what}: the entry {name[:80]!r} should hold exactly {sorted(_FIELDS)}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{what}: {name[:80]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{what}: {name[:80]!r} has no valid shape: {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{what}: {name[:80]!r} has no valid range: {str(offsets)[:80]}")
    info = TensorInfo(tuple(shape), dtype)
    begin, end = offsets
    if end - begin != info.num_bytes:
        raise CheckpointError(
            f"{what}: {name[:80]!r} of shape {list(shape)} and dtype {dtype} takes "
            f"{info.num_bytes} bytes, its range holds {end - begin}"
        )
    return info, begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 62 for value in values
    )


def _check_ranges(ranges: list[tuple[int, int, str]], data_bytes: int, what: str) -> None:
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            state = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise CheckpointError(
                f"{what}: {name[:80]!r} starts at byte {begin} and {state} ({at})"
            )
        at = end
    if at != data_bytes:
        state = "is truncated" if at > data_bytes else "has bytes that no tensor owns"
        raise CheckpointError(
            f"{what} {state}: its tensors take {at} bytes, the file holds {data_bytes}; "
            "fetch it again"
        )
