"""One safetensors file, opened once: its header is read by safetensors, its values are mapped.

A tensor is handed out once a mapping, so that nobody writes into weights that another holds.
"""

from __future__ import annotations

import os
import shlex
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fourm_lite.errors import CheckpointError
from fourm_lite.io.strict_json import MAX_JSON_BYTES
from fourm_lite.io.tensor_info import ITEM_BYTES, TensorInfo

MAX_RANK = 16
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class WeightsFile:
    """Names, shapes and metadata of a safetensors file, and its tensors when they are asked for.

    Raises:
        CheckpointError: the file is missing or damaged, or it is a pickle
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = _checked_size(path)
        self._file = self._opened()
        self._given: set[str] = set()
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.tensors = {name: self._info(name) for name in self._file.keys()}  # noqa: SIM118

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, mapped from the file.

        Raises:
            CheckpointError: the file changed since it was opened
        """
        wanted = set(names)
        try:
            size = os.stat(self.path).st_size
            if size != self._size:
                raise CheckpointError(
                    f"cannot read {self.path}: it had {self._size} bytes when it was opened, now "
                    f"it has {size}; open it again"
                )
            if wanted & self._given:
                self._file, self._given = self._opened(), set()
            found = {name: self._file.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        self._given |= wanted
        return found

    def _opened(self) -> Any:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise CheckpointError(
                f"{self.path} should be a whole safetensors file, it is not: {reason[:300]}; "
                "fetch it again"
            ) from error

    def _info(self, name: str) -> TensorInfo:
        found = self._file.get_slice(name)
        info = TensorInfo(tuple(found.get_shape()), found.get_dtype())
        if info.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.path}: {name[:80]!r} has the type {info.dtype[:40]}; known are "
                f"{', '.join(ITEM_BYTES)}"
            )
        if len(info.shape) > MAX_RANK:
            raise CheckpointError(
                f"{self.path}: {name[:80]!r} should have at most {MAX_RANK} dimensions, "
                f"it has {len(info.shape)}"
            )
        return info


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file.

    Raises:
        CheckpointError: it is missing, truncated or damaged
    """
    file = WeightsFile(path)
    return file.load(file.tensors)


def _checked_size(path: Path) -> int:
    """The file's length; its first bytes tell the usual mistakes better than safetensors does."""
    try:
        with path.open("rb") as file:
            total, start = os.fstat(file.fileno()).st_size, file.read(8)
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
    return total
