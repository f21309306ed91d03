"""What a value is before any modality is asked: ids, numbers, pixels, a file, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.errors import FourMError
from fourm_lite.modalities import pictures
from fourm_lite.modalities.spec import Modality
from fourm_lite.reading.regular import read_bytes
from fourm_lite.tokenization.vq.inputs import as_tensor

_PIXELS = (torch.uint8, torch.uint16, np.dtype(np.uint8), np.dtype(np.uint16))


def finite(entry: Modality, values: Tensor) -> Tensor:
    """The values, if none is NaN or infinite.

    Raises:
        FourMError: one is
    """
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise FourMError(
            f"'{entry.name}' expects finite numbers, got {int(bad.sum())} that are NaN or infinite "
            f"of {bad.numel()}; replace them or leave the item out"
        )
    return values


def as_picture(value: Any, name: str, short_side: int | None = None) -> Any:
    """An upright PIL picture from whatever `modalities.pictures.as_picture` reads.

    Raises:
        ShapeError: an array of another shape
        FourMError: anything else
    """
    from PIL import Image

    if not (isinstance(value, (str, Path, bytes, Image.Image)) or is_pixels(value)):
        raise FourMError(
            f"'{name}' expects a path, bytes, a PIL picture or uint8[H, W, C], got "
            f"{type(value).__name__}"
        )
    try:
        return pictures.as_picture(value, short_side=short_side)
    except FourMError as error:
        raise type(error)(f"'{name}': {error}") from error


def token_ids(value: Any) -> Tensor | None:
    """Integers as ids; None for anything else. uint8 is a picture."""
    if isinstance(value, np.ndarray) and value.dtype != np.uint8 and value.dtype.kind in "iu":
        return torch.from_numpy(value.astype(np.int64)) if value.ndim == 1 else None
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
        return value
    is_list = isinstance(value, (list, tuple)) and bool(value)
    return torch.tensor(value) if is_list and all(type(v) is int for v in value) else None


def is_token_ids(value: Any) -> bool:
    """Whether a value is read as token ids, for which no tokenizer is needed."""
    return token_ids(value) is not None


def is_pixels(value: Any) -> bool:
    """Whether it is a picture as whole numbers of 8 or 16 bits."""
    return isinstance(value, (Tensor, np.ndarray)) and value.dtype in _PIXELS


def is_numbers(value: Any) -> bool:
    """Whether it is an array or tensor of any other numbers."""
    return isinstance(value, (Tensor, np.ndarray)) and value.dtype not in _PIXELS


def is_file(value: Any) -> bool:
    """Whether it is a file: its path, or its bytes."""
    return isinstance(value, (str, Path, bytes))


def bytes_of(value: str | Path | bytes) -> bytes:
    """The bytes of a file."""
    return value if isinstance(value, bytes) else read_bytes(Path(value).expanduser())


def tensor_of(value: Any) -> Tensor:
    """An array, or numbers in rows, as a tensor."""
    if isinstance(value, list | tuple):  # numbers in rows
        value = np.array(value)
    return as_tensor(value)
