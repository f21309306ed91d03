"""Items with different modalities and lengths, as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from fourm_lite.batch import TokenBatch, Tokens


def collate(items: Sequence[Mapping[str, Tokens]]) -> TokenBatch:
    """Joins batches of one; what an item lacks is there and hidden.

    Sequences are padded to the longest of the batch.
    """
    names = dict.fromkeys(name for item in items for name in item)
    return TokenBatch({name: _join([item.get(name) for item in items]) for name in names})


def _join(parts: Sequence[Tokens | None]) -> Tokens:
    present = [p for p in parts if p is not None]
    length = max(p.length for p in present)
    like = present[0]
    rows = [_padded(like.hidden() if p is None else p, length) for p in parts]
    return Tokens(
        torch.cat([r.value for r in rows]),
        inputs=torch.cat([r.inputs for r in rows]),
        targets=torch.cat([r.targets for r in rows]),
    )


def _padded(tokens: Tokens, length: int) -> Tokens:
    missing = length - tokens.length
    if missing == 0:
        return tokens
    value = tokens.value  # [1, L] ids or [1, L, E] features: only these have lengths of their own
    widths = (0, 0) * (value.ndim - 2) + (0, missing)
    return Tokens(
        F.pad(value, widths),
        inputs=F.pad(tokens.inputs, (0, missing)),
        targets=F.pad(tokens.targets, (0, missing)),
    )
