"""Writing checkpoints so that a reader finds the old one or the new one, never a mixture.

Files are written beside their place, flushed to the disk and renamed. Where two files change
(weights and config.json) the rename of the weights decides: they carry their own configuration,
and `config.json.next`, laid down before, lets a reader finish what a killed writer began.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError
from fourm_lite.io.files import flush, remove_leftovers, replacing, storage_errors, write_whole
from fourm_lite.io.layout import CONFIG, INDEX, PENDING, WEIGHTS
from fourm_lite.io.strict_json import dump_json, read_json_object
from fourm_lite.io.weights_file import OWN_KEY, TYPES, TensorInfo
from fourm_lite.names import is_name

DTYPES = {dtype: name for name, dtype in TYPES.items() if not dtype.is_complex}
ALIGNMENT = 64  # bytes; mapped weights at such addresses give the very sums of allocated ones


def write(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes config.json and model.safetensors into a folder and returns it.

    An existing checkpoint there is replaced; when writing fails it is left as it was.

    Raises:
        CheckpointError: the configuration is not JSON, or a tensor cannot be stored
        StorageError: the disk takes no more, or the folder cannot be written
    """
    place = Path(folder)
    with _folder(place), _pending(place, config) as inner:
        write_file(place / WEIGHTS, weights, metadata={**(metadata or {}), **inner})
    _finish(place)
    shards = _listed_shards(place) - {WEIGHTS}
    _unlink([place / INDEX, *(place / name for name in shards)])
    return place


def write_single(
    path: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Path:
    """Writes one .safetensors file that carries its configuration, and returns its path.

    Raises:
        CheckpointError: the name does not end in .safetensors, or see `write`
    """
    place = Path(path)
    if place.suffix != ".safetensors":
        raise CheckpointError(f"expected a name that ends in .safetensors, got {place}")
    if place.name == WEIGHTS and (place.parent / CONFIG).exists():
        raise CheckpointError(
            f"{place} belongs to the {CONFIG} beside it; write the folder instead"
        )
    with _folder(place.parent):
        write_file(place, weights, metadata=_inner(config))
    return place


def write_file(
    path: Path, weights: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None
) -> None:
    """Writes a safetensors file, one tensor at a time: no second copy of the weights in memory.

    Tensors that share memory are each written in full.
    """
    infos = {name: _info(name, weights[name]) for name in weights}
    order = sorted(infos, key=lambda name: _place(name, infos[name]))
    head = encode_header(
        {name: infos[name] for name in order}, {"format": "pt", **(metadata or {})}
    )
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(head)
        for name in order:
            file.write(_bytes(weights[name]))


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file whose tensors follow in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, info in tensors.items():
        end = at + info.num_bytes
        table[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [at, end]}
        at = end
    text = dump_json(table, "the header").encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


@contextlib.contextmanager
def _pending(place: Path, config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Lays down config.json.next and lets the block put the weights in place.

    Its last act must be their renaming: an error means that the old ones still stand.
    """
    inner = _inner(config)
    following = place / PENDING
    try:
        write_whole(following, dump_json(dict(config), CONFIG, indent=2) + "\n")
        yield inner
    except Exception:  # an interrupt may come after the renaming: then the file is still needed
        _unlink([following])
        raise


def _finish(place: Path) -> None:
    """Puts config.json in place."""
    with storage_errors(place, kept="reading it finishes what was begun"):
        os.replace(place / PENDING, place / CONFIG)
        flush(place)


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[None]:
    """Makes the folder, and takes it away again when the block fails and it is new."""
    new = not place.exists()
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def _inner(config: Mapping[str, Any]) -> dict[str, str]:
    return {OWN_KEY: dump_json(dict(config), CONFIG)}


def _place(name: str, info: TensorInfo) -> tuple[bool, int, str]:
    """Sorts tensors so that all but the odd-sized ones, which come last, start aligned."""
    return info.num_bytes % ALIGNMENT != 0, -TYPES[info.dtype].itemsize, name


def _info(name: str, value: Tensor) -> TensorInfo:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"'{name}' should be a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES or value.layout != torch.strided or value.is_meta:
        raise CheckpointError(
            f"'{name}' cannot be stored: expected a dense tensor of a plain type, "
            f"got {value.dtype}, {value.layout}, on {value.device}"
        )
    return TensorInfo(tuple(value.shape), DTYPES[value.dtype])


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def _listed_shards(place: Path) -> set[str]:
    if not (place / INDEX).is_file():
        return set()
    try:
        table = read_json_object(place / INDEX).get("weight_map")
    except CheckpointError:
        return set()
    names = table.values() if isinstance(table, dict) else []
    return {n for n in names if is_name(n) and n.endswith(".safetensors")}


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
