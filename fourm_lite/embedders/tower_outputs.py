"""What networks return, as tensors: plain tensors, arrays, tuples, dictionaries, output objects.

transformers 5 changed `get_image_features` from a tensor to an output object; timm returns tensors;
users' own functions return anything. Both shapes of the truth are read here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ShapeError

VECTOR_NAMES = ("image_embeds", "text_embeds", "embeddings", "embedding", "pooler_output", "logits")
MAP_NAMES = ("last_hidden_state", "feature_map", "patches", "features")


def as_vectors(output: Any) -> Tensor:
    """One vector an item, from whatever a network returned.

    Shapes:
        returns: [B, E]; maps of size 1x1 lose their two last axes
    Raises:
        ShapeError: there is no tensor of that shape in the output
    """
    found = _pick(output, VECTOR_NAMES)
    if found is not None and found.ndim == 4 and found.shape[2:] == (1, 1):
        found = rearrange(found, "b e 1 1 -> b e")
    if found is not None and found.ndim == 2:
        return found
    got = "nothing" if found is None else f"shape {tuple(found.shape)}"
    raise ShapeError(
        f"an embedder must return one vector an item, [B, E]; {type(output).__name__} held {got}. "
        f"Return a tensor or array of that shape, or an output with one of {VECTOR_NAMES}"
    )


def as_patches(output: Any) -> Tensor:
    """A feature map as tokens, from [B, L, E] or [B, E, H, W].

    Shapes:
        returns: [B, L, E], rows first
    """
    found = _pick(output, MAP_NAMES)
    if found is not None and found.ndim == 4:
        return rearrange(found, "b e h w -> b (h w) e")
    if found is not None and found.ndim == 3:
        return found
    got = "nothing" if found is None else f"shape {tuple(found.shape)}"
    raise ShapeError(f"a feature map must be [B, L, E] or [B, E, H, W]; got {got}")


def _pick(output: Any, names: tuple[str, ...]) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(output))
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor | np.ndarray):
            return _pick(value, names)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        if all(_is_row(row) for row in output):
            return _stacked(output)
        return _first_of_rank(output, (2, 4) if "logits" in names else (3, 4), names)
    return None


def _is_row(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(number, int | float) for number in value)
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 1


def _stacked(rows: tuple[Any, ...] | list[Any]) -> Tensor:
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise ShapeError(
            f"an embedder gave vectors of different widths {widths} in one batch; "
            f"it must keep one width"
        )
    return torch.stack([torch.as_tensor(row) for row in rows]).float()


def _first_of_rank(
    values: tuple[Any, ...] | list[Any], ranks: tuple[int, ...], names: tuple[str, ...]
) -> Tensor | None:
    tensors = [v for v in values if isinstance(v, Tensor | np.ndarray)]
    fitting = [v for rank in ranks for v in tensors if v.ndim == rank]
    return _pick(fitting[0], names) if fitting else None
