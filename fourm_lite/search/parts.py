"""What a reranker's score is made of, and what of a candidate its words are said from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from fourm_lite.errors import ConfigError, suggest

Weights = Mapping[str, float]
Given = Literal["codes", "pixels", "both"]
GIVEN: tuple[Given, ...] = ("codes", "pixels", "both")
"""What of a candidate its words are said from."""
PARTS = ("cosine", "codes", "caption", "prior")
DIRECTIONS = ("text_to_image", "image_to_text")


class UnseenError(ConfigError):
    """A reranker cannot look at some hits; `uris` are theirs."""

    def __init__(self, message: str, uris: Sequence[str]) -> None:
        super().__init__(message)
        self.uris = frozenset(uris)


def check_given(given: Any) -> Given:
    """Refuses what is none of `GIVEN`."""
    if given not in GIVEN:
        raise ConfigError(
            f"words are said from one of {', '.join(GIVEN)}, got {given!r}."
            f"{suggest(str(given), GIVEN)}"
        )
    return cast(Given, given)


def check_weights(weights: Any) -> Weights:
    """Refuses unknown parts and weights that are no numbers."""
    if not isinstance(weights, Mapping):
        raise ConfigError(f"weights are numbers by part ({', '.join(PARTS)}), got {weights!r:.80}")
    for name, value in weights.items():
        if name not in PARTS:
            raise ConfigError(f"there is no part {name!r} to weigh.{suggest(str(name), PARTS)}")
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"the weight of {name!r} is a finite number, got {value!r}")
    return weights
