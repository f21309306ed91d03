"""What every tokenizer offers, and the value that a quantizer returns.

Token ids (int64) are the only contract between tokenizers and the 4M model; neither imports the
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

Raw = TypeVar("Raw")


class Tokenizer(Protocol[Raw]):
    """Turns raw values into token ids and back; `Raw` is a Tensor for images, strings for text."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        ...

    def tokenize(self, raw: Raw) -> Tensor:
        """Token ids int64 of raw values."""
        ...

    def detokenize(self, tokens: Tensor, **options: Any) -> Raw:
        """Raw values of token ids."""
        ...


@dataclass(frozen=True)
class Quantized:
    """Latents snapped to their codes.

    Shapes:
        latents: float[B, latent_dim, Hq, Wq], code vectors (straight-through while training)
        tokens: int64[B, Hq, Wq], or int64[B, heads, Hq, Wq] with several codebooks
        loss: float[], the weighted commitment loss; 0 outside the training step
    """

    latents: Tensor
    tokens: Tensor
    loss: Tensor
