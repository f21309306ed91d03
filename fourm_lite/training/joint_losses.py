"""Losses of twin encoders and matching heads, as MMT-Retrieval trains them.

Distances are 1 - cosine. `texts` and `images` are pooled states, float[B, E], by position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SAME = 2.0
"""Added to the distance of pairs that are no negatives: more than any distance is apart."""


def hardest_triplet_loss(
    texts: Tensor, images: Tensor, picture_ids: Tensor, margin: float = 0.2
) -> Tensor:
    """The mean over pairs of both hinges against the nearest wrong one in the batch.

    Rows that share a picture (`picture_ids` int64[B]) are no negatives of each other.
    """
    distances = 1 - _cosines(texts, images)
    same = picture_ids[:, None] == picture_ids[None]
    far = distances + SAME * same
    paired = distances.diagonal()
    captions, pictures = far.min(dim=0).values, far.min(dim=1).values
    return (F.relu(paired - captions + margin) + F.relu(paired - pictures + margin)).mean()


def contrastive_loss(texts: Tensor, images: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy of each picture over the captions of the batch (NT-Xent)."""
    logits = scale * _cosines(images, texts)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of pairs, int64[B] with 1 for a match; one logit is read as its own sigmoid."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def sampled_triplet_loss(
    texts: Tensor, images: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.1
) -> Tensor:
    """The mean of both hinges over given negatives of both sides.

    Shapes:
        positives: int64[P], rows that belong together in `texts` and `images`
        negatives: int64[P, k], wrong rows of each, for both sides
    """
    distances = 1 - _cosines(texts, images)
    paired = distances[positives, positives][:, None]
    pictures = distances[positives[:, None], negatives]
    captions = distances[negatives, positives[:, None]]
    return (F.relu(paired - pictures + margin) + F.relu(paired - captions + margin)).mean()


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
