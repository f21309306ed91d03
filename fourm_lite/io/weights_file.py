"""One safetensors file, opened once: its header is read by safetensors, its values are mapped.

A tensor is handed out once a mapping, so that nobody writes into weights that another holds.
Handing it out reads nothing: only what is computed with is fetched from the disk.

The header's strings are our own configuration, 4M's, or names of shared tensors. 4M writes each
configuration value as `str(value)`: they are read as Python literals, then as JSON, and nothing is
evaluated. Two readings differ from 4M's YAML on purpose: `1e-05` is a number here (a string there),
and `yes`, `no`, `on`, `off` stay the words that they are.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import math
import mmap
import os
import re
import shlex
import struct
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fourm_lite.errors import CheckpointError, ReadError
from fourm_lite.io.strict_json import MAX_JSON_BYTES, as_object, parse_json
from fourm_lite.reading.regular import allowance, open_regular, too_large

TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
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
        return math.prod(self.shape) * TYPES[self.dtype].itemsize


MAX_RANK = 16
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class WeightsFile:
    """Names, shapes and metadata of a safetensors file, and its tensors when they are asked for.

    Raises:
        CheckpointError: the file is missing or damaged, or it is a pickle
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size, start = _size_and_start(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.tensors = {name: _info(file, name, path) for name in file.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise _refusal(path, error) from error
        sizes = (info.num_bytes for info in self.tensors.values())
        self._starts = dict(zip(self.tensors, accumulate(sizes, initial=start), strict=False))
        self._mapped: torch.UntypedStorage | None = None
        self._given: set[str] = set()

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, mapped from the file; none of their values is read.

        In the order of the file: processes that train together must meet them in one order.

        Raises:
            CheckpointError: the file changed since it was opened
        """
        wanted = set(names)
        if self._mapped is None or wanted & self._given:
            self._mapped, self._given = self._map(), set()
        elif self._current_size() != self._size:
            raise self._changed()
        self._given |= wanted
        return {
            n: self._view(self._mapped, n) for n in sorted(wanted, key=self._starts.__getitem__)
        }

    def _view(self, mapped: torch.UntypedStorage, name: str) -> Tensor:
        # safetensors' get_tensor reads the first value: that takes up to 2 MB of every tensor
        info, start = self.tensors[name], self._starts[name]
        own = mapped[start : start + info.num_bytes]
        shape = torch.Size(info.shape)
        strides = torch.empty(shape, device="meta").stride()
        return torch.empty(0, dtype=TYPES[info.dtype]).set_(own, 0, shape, strides)

    def _map(self) -> torch.UntypedStorage:
        if self._current_size() != self._size:
            raise self._changed()
        try:
            mapped = torch.UntypedStorage.from_file(str(self.path), False, self._size)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        assert isinstance(mapped, torch.UntypedStorage)
        return mapped

    def _current_size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"cannot read {self.path}: it no longer has the {self._size} bytes that it had when it "
            "was opened; open it again"
        )


def let_go(tensor: Tensor) -> None:
    """Gives back the memory of a tensor that was mapped from a file; reading it fetches it again.

    For one that has been copied and that nobody has written into. Pages that it shares with its
    neighbours stay; where the system has no such call, all of them do until they are needed.
    """
    advise = _advise()
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if advise is not None and length > 0:
        advise(start, length, mmap.MADV_DONTNEED)


@functools.cache
def _advise() -> Any:
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, TypeError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found if sys.platform == "linux" else None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file.

    Raises:
        CheckpointError: it is missing, truncated or damaged
    """
    file = WeightsFile(path)
    return file.load(file.tensors)


def _info(file: Any, name: str, path: Path) -> TensorInfo:
    found = file.get_slice(name)
    info = TensorInfo(tuple(found.get_shape()), found.get_dtype())
    if info.dtype not in TYPES:
        raise CheckpointError(
            f"{path}: {name[:80]!r} has the type {info.dtype[:40]}; known are {', '.join(TYPES)}"
        )
    if len(info.shape) > MAX_RANK:
        raise CheckpointError(
            f"{path}: {name[:80]!r} should have at most {MAX_RANK} dimensions, "
            f"it has {len(info.shape)}"
        )
    return info


def _refusal(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    reason = str(error).removeprefix("Error while deserializing header: ")
    return CheckpointError(
        f"{path} should be a whole safetensors file, it is not: {reason[:300]}; fetch it again"
    )


def _size_and_start(path: Path) -> tuple[int, int]:
    """The file's length, and where its values start.

    Its first bytes tell the usual mistakes better than safetensors does.
    """
    try:
        with open_regular(path) as file:
            total, start = os.fstat(file.fileno()).st_size, file.read(8)
            if total > (most := allowance(file)):
                raise ReadError(too_large(str(path), total, most))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
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
    return total, 8 + int(length)


MAX_LITERAL = 10_000  # longer values stay strings, as in 4M
MAX_NESTING = 16
OWN_KEY = "config"
_WORDS: dict[str, Any] = {
    "None": None, "null": None, "~": None,
    "True": True, "true": True, "TRUE": True,
    "False": False, "false": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(
    r"[+-]?([0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40}|[0-9]{1,40}(?=[eE]))([eE][+-]?[0-9]{1,4})?\Z"
)
# What str() of lists, tuples, dicts, texts and numbers is made of: no operator, name or call
_TOKENS = re.compile(
    r"""(?:[\[\](){},:\s]|'[^'\\\n]*+'|"[^"\\\n]*+"|-?[0-9][0-9.]*+(?:e[+-]?[0-9]++)?"""
    r"""|None|True|False)*+\Z"""
)
_PLAIN = (str, int, float, bool, type(None))


def read_metadata(
    metadata: Mapping[str, str], tensors: Collection[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """What the metadata holds: aliases (dropped name -> kept name), and the configuration.

    Raises:
        CheckpointError: our own configuration is damaged
    """
    aliases = {
        key: value for key, value in metadata.items() if value in tensors and key not in tensors
    }
    rest = {key: value for key, value in metadata.items() if key not in aliases and key != "format"}
    if rest.get(OWN_KEY, "").lstrip().startswith("{"):
        what = f"the metadata key '{OWN_KEY}'"
        return aliases, as_object(parse_json(rest[OWN_KEY], what), what)
    return aliases, {key: parse_value(value) for key, value in rest.items()}


def parse_value(text: str) -> Any:
    """The value behind `str(value)`; the text itself when it is no plain literal.

    >>> parse_value("['caption', 'rgb@224']"), parse_value("1e-05"), parse_value("GELU")
    (['caption', 'rgb@224'], 1e-05, 'GELU')
    """
    stripped = text.strip()
    if len(text) > MAX_LITERAL:
        return text
    if stripped in _WORDS:
        return _WORDS[stripped]
    if _INTEGER.match(stripped):
        return int(stripped)
    if _FLOAT.match(stripped):
        number = float(stripped)
        return number if math.isfinite(number) else text
    if stripped[:1] in ("[", "(", "{", "'", '"'):
        return _parse_literal(stripped, text)
    return text


def _parse_literal(stripped: str, text: str) -> Any:
    for parse in (_python_literal, _json_literal):
        try:
            value = parse(stripped)
            if _is_plain(value, MAX_NESTING):
                return value
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OSError):
            continue
    return text


def _python_literal(text: str) -> Any:
    if not _TOKENS.match(text):
        raise ValueError("no plain literal")
    return ast.literal_eval(text)


def _json_literal(text: str) -> Any:
    return parse_json(text, "a metadata value")


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is made of lists, tuples, string-keyed dicts and finite scalars alone."""
    if depth == 0:
        return False
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v, depth - 1) for k, v in value.items())
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))
