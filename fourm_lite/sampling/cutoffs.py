"""How much of a vocabulary sampling may use: what `top_k` and `top_p` mean. No torch here.

Unusual: as in 4M an integer `top_k` is a number of ids, a float one a share of the vocabulary, so
1 and 1.0 differ; 0 means off for both.
"""

from __future__ import annotations

from numbers import Integral, Real

from fourm_lite.errors import ConfigError


def num_kept(top_k: float | None, vocab_size: int) -> int | None:
    """How many ids `top_k` keeps; None when it keeps them all.

    >>> num_kept(50, 8192), num_kept(0.25, 8192), num_kept(1e-9, 8192), num_kept(0, 8192)
    (50, 2048, 1, None)

    Raises:
        ConfigError: a negative number, a share above 1, or no number
    """
    if top_k is None:
        return None
    if isinstance(top_k, bool) or not isinstance(top_k, Real) or not top_k >= 0:
        raise ConfigError(f"top_k must be a number >= 0 or None, got {top_k!r}")
    if isinstance(top_k, Integral):
        kept = int(top_k)
    elif top_k > 1:
        raise ConfigError(
            f"a float top_k is a share of the vocabulary in (0, 1], got {top_k!r}; "
            f"to keep {top_k:g} ids give an integer"
        )
    else:
        kept = max(int(top_k * vocab_size), 1) if top_k else 0
    return kept if 0 < kept < vocab_size else None


def share_kept(top_p: float | None) -> float | None:
    """The share of the probability that `top_p` keeps; None when it keeps everything.

    >>> share_kept(0.9), share_kept(0.0), share_kept(1)
    (0.9, None, None)

    Raises:
        ConfigError: no number between 0 and 1
    """
    if top_p is None:
        return None
    if isinstance(top_p, bool) or not isinstance(top_p, Real) or not 0 <= top_p <= 1:
        raise ConfigError(f"top_p must be a share between 0 and 1 or None, got {top_p!r}")
    return float(top_p) if 0 < top_p < 1 else None
