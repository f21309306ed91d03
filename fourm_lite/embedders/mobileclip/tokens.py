"""CLIP's words for MobileCLIP: always 77 ids, cut with the end token last, padded with 0.

The vocabulary is open_clip's file, or that of a transformers CLIP folder; it is not in this
library. Padding is read like words by towers that are not causal, so the length never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, FourMError

Tokens = Callable[[list[str]], Tensor]
"""n texts -> int64[n, length]."""


def clip_tokens(tokenizer: Any, length: int) -> Tokens:
    """What turns texts into ids: a transformers CLIP folder, a callable, or open_clip's vocabulary.

    Raises:
        FourMError: nothing is given and open_clip is not installed
        CheckpointError: the folder holds no tokenizer
    """
    if callable(tokenizer):
        return lambda texts: torch.as_tensor(tokenizer(texts))
    if tokenizer is not None:
        return _from_transformers(str(Path(tokenizer).expanduser()), length)
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise FourMError(
            "MobileCLIP's files hold no vocabulary: pip install open_clip_torch, which "
            "carries CLIP's, or give the folder of a transformers CLIP tokenizer: tokenizer=FOLDER"
        ) from error
    read = SimpleTokenizer(context_length=length)
    return lambda texts: torch.as_tensor(read(texts))


def _from_transformers(folder: str, length: int) -> Tokens:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{folder}' holds no CLIP tokenizer: {error}") from error

    def read(texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, ids in zip(rows, tokenizer(texts)["input_ids"], strict=True):
            cut = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            row[: len(cut)] = torch.tensor(cut)
        return rows

    return read
