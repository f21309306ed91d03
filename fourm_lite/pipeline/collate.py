"""Items with different modalities and lengths, as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

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
    rows = [(like.hidden() if p is None else p).padded(length) for p in parts]
    return Tokens(
        torch.cat([r.value for r in rows]),
        inputs=torch.cat([r.inputs for r in rows]),
        targets=torch.cat([r.targets for r in rows]),
    )
