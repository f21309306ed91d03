"""Masks and poses that stand as tokens inside a text, decoded by tokenizers of their own.

A SAM instance says its mask in 16 tokens within its box, a person the pose in 8. Where the
tokenizer is known the value gets the mask and the joints beside its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ShapeError
from fourm_lite.modalities.values import Person, PointQuery
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

JOINTS = 23


def with_masks(queries: Sequence[PointQuery], tokenizer: VQTokenizer) -> tuple[PointQuery, ...]:
    """The points with the mask of each thing, bool[H, W] within its box."""
    segments = [s for query in queries for s in query.segments]
    if not segments:
        return tuple(queries)
    logits = _decoded([s.tokens for s in segments], tokenizer)
    if logits.ndim != 4:
        raise ShapeError(f"a tokenizer of masks gives maps, got numbers of {list(logits.shape)}")
    masks = iter((logits[:, 0] > 0).numpy())  # trained as logits of a binary cross-entropy
    return tuple(
        replace(query, segments=tuple(replace(s, mask=next(masks)) for s in query.segments))
        for query in queries
    )


def with_joints(people: Sequence[Person], tokenizer: VQTokenizer) -> tuple[Person, ...]:
    """The people with the rotation of each joint, where the text says their pose."""
    posed = [person.pose for person in people if person.pose is not None]
    if not posed:
        return tuple(people)
    numbers = _decoded(posed, tokenizer).flatten(1)
    if numbers.shape[1] != JOINTS * 9:
        raise ShapeError(
            f"a tokenizer of poses gives {JOINTS} rotation matrices, {JOINTS * 9} numbers; got "
            f"{numbers.shape[1]}"
        )
    rotations = iter(rearrange(numbers, "n (j r) -> n j r", r=9).tolist())
    return tuple(
        person if person.pose is None else replace(person, joints=_frozen(next(rotations)))
        for person in people
    )


def _frozen(rows: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _decoded(tokens: Sequence[Sequence[int]], tokenizer: VQTokenizer) -> Tensor:
    ids = torch.tensor([list(row) for row in tokens], device=tokenizer.quant_proj.weight.device)
    return tokenizer.detokenize(ids).cpu().float()


INNER: Mapping[str, Callable[[Any, VQTokenizer], Any]] = {
    "sam_instances": with_masks,
    "human_poses": with_joints,
}
"""By the `text_format` of the sequence."""
