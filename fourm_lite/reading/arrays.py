"""NumPy's .npy and .npz files, written and read without pickle and without believing their headers.

`numpy.load` allocates what a header declares; here the bytes must be as many as it says.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ReadError
from fourm_lite.reading.regular import allowance, limited, open_regular, read_bytes, too_large

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_HEADER = 1 << 16
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    struct.error, UnicodeError, ValueError, OverflowError, IndexError,
)  # fmt: skip


def read_npy(data: bytes | bytearray) -> npt.NDArray[Any]:
    """The array of an .npy file; `numpy.load` would allocate what the header declares.

    Raises:
        ReadError: the bytes are no .npy file, hold objects, or are not as long as declared
    """
    shape, fortran, dtype, start = _npy_header(data[: _MAX_HEADER + 16])
    declared = math.prod(shape) * dtype.itemsize
    if declared != len(data) - start:
        raise ReadError(
            f"the .npy file declares {dtype}{list(shape)}, {declared} bytes, but "
            f"{len(data) - start} follow; it is cut off or damaged"
        )
    try:
        flat = np.frombuffer(data, dtype=dtype, offset=start)
        return flat.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # no bytes, or an item of none
        if declared:
            raise ReadError(f"the .npy file holds no array: {error}") from error
        return np.empty(shape, dtype)


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An .npy file of an array, which is refused if it holds objects."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _npy_header(data: bytes | bytearray) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and length of the header of an .npy file.

    Raises:
        ReadError: there is none, or it declares objects or negative sides
    """
    stream = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    # A hostile header is Python syntax: reading it may fail in any way, but runs nothing.
    except Exception as error:
        raise ReadError(
            f"expected an .npy file of version 1 or 2, got {len(data)} bytes that are none "
            f"({type(error).__name__}); write one with numpy.save"
        ) from error
    if dtype.hasobject:
        raise ReadError("this .npy file holds Python objects, which would run code; save numbers")
    if any(side < 0 for side in shape):
        raise ReadError(f"the .npy file declares the shape {list(shape)}; it is damaged")
    return shape, fortran, dtype, stream.tell()


def read_npy_file(path: str | Path) -> npt.NDArray[Any]:
    """The array of an .npy file on the disk.

    Raises:
        ReadError: see `read_bytes` and `read_npy`
    """
    try:
        return read_npy(bytearray(read_bytes(path)))
    except ReadError as error:
        raise ReadError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


@dataclass(frozen=True)
class Place:
    """Where an array lies in a file.

    Units:
        offset: bytes from the file's start
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Arrays(Mapping[str, npt.NDArray[Any]]):
    """The arrays of an open .npz file by name, each read when it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, limit: int) -> None:
        self.path = path
        self._archive, self._limit = archive, limit
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if not info.is_dir()
        }

    @property
    def files(self) -> list[str]:
        """The names, as `numpy.load` calls them."""
        return list(self._members)

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            known = ", ".join(sorted(self._members)[:10]) or "nothing"
            raise ReadError(f"{self.path} holds no array {name!r}; it holds {known}")
        return self._members[name]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        info = self._member(name)
        if info.file_size > self._limit:
            raise ReadError(too_large(f"{name!r} in {self.path}", info.file_size, self._limit))
        with _array_errors(self.path), self._archive.open(info) as stream:
            return read_npy(limited(stream, self._limit, f"{name!r} in {self.path}"))

    def stored(self, name: str) -> Place | None:
        """Where an array lies in the file in one piece; None where it is compressed.

        Raises:
            ReadError: it is missing or damaged, holds objects, or reaches beyond the file
        """
        info = self._member(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with _array_errors(self.path), self._archive.open(info) as stream:
            shape, fortran, dtype, length = _npy_header(stream.read(_MAX_HEADER + 16))
        with open_regular(self.path) as file, _array_errors(self.path):
            file.seek(info.header_offset + 26)  # of the local header: name and extra field
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + length
            size = os.fstat(file.fileno()).st_size
        declared = math.prod(shape) * dtype.itemsize
        if declared != info.file_size - length or start + declared > size:
            raise ReadError(f"{self.path}: {name!r} is not as long as it says; it is damaged")
        return Place(start, shape, dtype, fortran)

    def rows(self, *names: str) -> list[npt.NDArray[Any]]:
        """Arrays that lie beside each other, one row an item.

        Raises:
            ReadError: one is missing, or they differ in length
        """
        found = [self[name] for name in names]
        lengths = {array.shape[:1] for array in found}
        if len(lengths) != 1 or lengths == {()}:
            shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in zip(names, found, strict=True))
            raise ReadError(f"{self.path} should hold as many {' as '.join(names)}, got {shapes}")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@contextlib.contextmanager
def open_npz(path: str | Path) -> Iterator[Arrays]:
    """The arrays of an .npz file, never pickled ones.

    Raises:
        ReadError: it is missing, damaged, or an array is larger than is allowed; also later, when
            an array is asked for
    """
    place = Path(path)
    with open_regular(place) as file:
        with _array_errors(place):
            archive = zipfile.ZipFile(file)
            found = Arrays(place, archive, allowance(file))
        with archive:
            yield found


@contextlib.contextmanager
def _array_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ReadError as error:
        raise ReadError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except _DAMAGE as error:
        raise ReadError(
            f"{path} is no .npz file, or is damaged ({type(error).__name__}: {str(error)[:200]})"
        ) from error
