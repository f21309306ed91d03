"""Amounts in a text, taken at the median of what the model expects.

The number word of a channel or a brightness (`v0=117`) is one of hundreds whose probabilities form
a broad hill. Its likeliest word is often an end of the scale and a drawn one far off; the median
has the least expected absolute error. Which kind of word stands next is left to the scheme.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourm_lite.sampling.logits import Drawn


def at_median(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits in which the median of some words has the probability of all of them.

    Shapes:
        logits: float[..., V]; returns the same
        ids: int64[n], the words in rising order of what they say; none changes nothing
    """
    if not len(ids):
        return logits
    part = logits[..., ids]
    below = part.float().softmax(dim=-1).cumsum(dim=-1) < 0.5
    median = ids[below.sum(dim=-1).clamp(max=len(ids) - 1)]
    out = logits.index_fill(-1, ids, -torch.inf)
    return out.scatter(-1, median[..., None], part.logsumexp(dim=-1, keepdim=True))


def own_confidence(ids: Tensor, logits: Tensor) -> Drawn:
    """Chosen words with the probability of each under the logits as they are.

    Shapes:
        ids: int64[...]; logits: float[..., V]
    """
    return Drawn(ids, logits.softmax(dim=-1).gather(-1, ids[..., None])[..., 0])
