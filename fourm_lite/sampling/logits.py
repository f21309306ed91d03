"""From logits to ids: top-k, top-p and drawing, for any number of rows.

Unusual: a row is drawn with one random number, not one an id, so each item of a batch draws its own
from its own generator, and its result does not depend on its neighbours. Top-p sorts the likeliest
few hundred ids, not the vocabulary. `draw_original` repeats the draws of 4M for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.sampling.schedule import num_kept, share_kept

GREEDY_BELOW = 1e-10
"""At or below this temperature the likeliest id is taken."""

_FIRST_SORTED = 256  # ids sorted at first
_GROWTH = 8  # times more for the rows whose share they do not cover
_BLOCK = 128  # ids summed up before the random number is looked up among the sums


class Drawn(NamedTuple):
    """Ids, and how sure the model was of each.

    Shapes:
        ids: int64[...]; confidence: float32[...], both without the vocabulary dimension
    """

    ids: Tensor
    confidence: Tensor


def filter_logits(
    logits: Tensor,
    top_k: float | None = None,
    top_p: float | None = None,
    *,
    original: bool = False,
) -> Tensor:
    """Logits with the unlikely ids set to minus infinity: first top-k, then top-p.

    Ids that tie with the last of the top-k are kept as well; top-p keeps the first id that crosses
    the share, and of ids that tie there the lowest (`original` sorts the whole vocabulary and
    leaves ties to the sort, as 4M does).

    Shapes:
        logits: float[..., V]; returns the same
    Raises:
        ConfigError: see `num_kept` and `share_kept`
    """
    k, p = num_kept(top_k, logits.shape[-1]), share_kept(top_p)
    if logits.numel() == 0 or (k is None and p is None and not original):
        return logits
    if k is not None:
        kth = logits.topk(k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if original:
        return _sorted_nucleus(logits, float(top_p)) if top_p else logits
    if p is None:
        return logits
    rows = logits.reshape(-1, logits.shape[-1])
    keep = _nucleus(rows if rows.dtype == torch.float64 else rows.float(), p, whole=k is None)
    return logits.masked_fill(~keep.view_as(logits), -torch.inf)


def _sorted_nucleus(logits: Tensor, p: float) -> Tensor:
    ordered, ids = torch.sort(logits, dim=-1, descending=True)
    above = ordered.softmax(dim=-1).cumsum(dim=-1) > p
    drop = above.roll(1, dims=-1)  # the first id that crosses stays
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, ids, drop), -torch.inf)


def _nucleus(rows: Tensor, p: float, *, whole: bool) -> Tensor:
    """Which ids of float[R, V] the share `p` needs: bool[R, V]."""
    num_sorted = _FIRST_SORTED if whole else int((rows > -torch.inf).sum(dim=-1).max())
    last, count = _last_kept(rows, p, max(num_sorted, 1))
    keep = rows >= last
    tied = keep.sum(dim=-1) > count  # more ids equal the last one than the share needs
    if bool(tied.any()):
        keep[tied] = _lowest_of_ties(rows[tied], last[tied], count[tied])
    return keep


def _last_kept(rows: Tensor, p: float, num_sorted: int) -> tuple[Tensor, Tensor]:
    """The logit of the last id kept, [R, 1], and how many ids are kept, int64[R]."""
    ordered = _largest(rows, num_sorted)
    covered = (ordered - rows.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    count = 1 + (covered[:, :-1] <= p).sum(dim=-1)
    last = ordered.gather(-1, count[:, None] - 1)
    short = covered[:, -1] <= p
    if ordered.shape[-1] < rows.shape[-1] and bool(short.any()):
        hopeless = bool((_GROWTH * covered[short, -1] < p).any())  # nearly flat rows
        more = rows.shape[-1] if hopeless else _GROWTH * num_sorted
        last[short], count[short] = _last_kept(rows[short], p, more)
    return last, count


def _largest(rows: Tensor, n: int) -> Tensor:
    if 4 * n < rows.shape[-1]:
        return rows.topk(n, dim=-1).values
    return rows.sort(dim=-1, descending=True).values  # a partial sort is slower from here on


def _lowest_of_ties(rows: Tensor, last: Tensor, count: Tensor) -> Tensor:
    above, equal = rows > last, rows == last
    room = count - above.sum(dim=-1)
    return above | (equal & (equal.cumsum(dim=-1) <= room[:, None]))


def draw(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: float | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Drawn:
    """One id a row.

    At temperature 0 that is the likeliest id, and its confidence its probability under the logits
    as they are (4M reports 1 and so loses the order). Above, the confidence is the probability of
    the id after filtering and temperature.

    Shapes:
        logits: float[..., V]
        uniforms: float64[...] in [0, 1), one a row; drawn from `generator` when left out
    Raises:
        ConfigError: a negative temperature, or neither `uniforms` nor `generator` above 0
        ShapeError: `uniforms` are not one a row
    """
    if not temperature >= 0:
        raise ConfigError(f"a temperature must be a number >= 0, got {temperature}")
    if temperature <= GREEDY_BELOW:
        return _likeliest(logits)
    if uniforms is None:
        uniforms = _uniforms(logits.shape[:-1], generator).to(logits.device)
    if uniforms.shape != logits.shape[:-1]:
        raise ShapeError(
            f"expected one uniform number for each row of {list(logits.shape)}, got "
            f"{list(uniforms.shape)}"
        )
    probs = _probabilities(filter_logits(logits, top_k, top_p), temperature)
    ids = _invert(probs.reshape(-1, probs.shape[-1]), uniforms.reshape(-1)).reshape(uniforms.shape)
    return Drawn(ids, _at(probs, ids))


def _likeliest(logits: Tensor) -> Drawn:
    best, ids = logits.float().max(dim=-1)
    return Drawn(ids, (best - logits.float().logsumexp(dim=-1)).exp())


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature).softmax(dim=-1)


def _at(probs: Tensor, ids: Tensor) -> Tensor:
    return probs.gather(-1, ids[..., None])[..., 0]


def _uniforms(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ConfigError(
            "sampling above temperature 0 needs a torch.Generator; the global one is never used"
        )
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The id at which the cumulative probability of float32[R, V] passes each of float64[R]."""
    size = _block_size(probs.shape[-1])
    blocks = probs.unflatten(-1, (-1, size))  # [R, V / size, size]
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    wanted = uniforms.to(ends) * ends[:, -1]
    block = _first_above(ends, wanted)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    row = torch.arange(len(probs), device=probs.device)
    inside = blocks[row, block].cumsum(dim=-1, dtype=torch.float64)
    return block * size + _first_above(inside, wanted - before)


def _block_size(vocab_size: int) -> int:
    size = _BLOCK
    while vocab_size % size:
        size //= 2
    return size


def _first_above(ends: Tensor, wanted: Tensor) -> Tensor:
    """Index of the first of the rising float64[R, n] above each of float64[R]: int64[R].

    An entry that adds nothing is never the first above. Rounding may put a number at the very end,
    which is pulled back inside.
    """
    limit = torch.nextafter(ends[:, -1], ends.new_zeros(()))
    wanted = torch.minimum(wanted, limit).clamp(min=0)
    return torch.searchsorted(ends, wanted[:, None], right=True)[:, 0]


def item_uniforms(generators: Sequence[torch.Generator], valid: Tensor) -> Tensor:
    """Random numbers for the rows of each item, from its own generator, in the order of its rows.

    What an item draws depends on how many valid rows it has, and on nothing else in the batch.

    Shapes:
        valid: bool[B, M], one generator an item
        returns: float64[B, M] in [0, 1), 0 where not valid
    Raises:
        ShapeError: not one generator an item
    """
    if len(generators) != len(valid):
        raise ShapeError(f"expected one generator an item ({len(valid)}), got {len(generators)}")
    counts = valid.sum(dim=-1).tolist()
    draws = [_uniforms((n,), g).to(valid.device) for n, g in zip(counts, generators, strict=True)]
    out = torch.zeros(valid.shape, dtype=torch.float64, device=valid.device)
    if draws:
        out[valid] = torch.cat(draws)
    return out


def draw_rows(
    logits: Tensor,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: float | None = None,
    top_p: float | None = None,
    valid: Tensor | None = None,
) -> Drawn:
    """One id for each row of each item, drawn from the item's own generator.

    Shapes:
        logits: float[B, M, V]
        valid: bool[B, M] or None; rows where it is False are padding and draw no random number
        returns: ids int64[B, M], confidence float32[B, M]
    """
    if valid is None:
        valid = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    if temperature <= GREEDY_BELOW:
        return draw(logits, temperature=temperature)
    return draw(
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        uniforms=item_uniforms(generators, valid),
    )


def draw_original(
    logits: Tensor,
    *,
    temperature: float,
    top_k: float | None,
    top_p: float | None,
    seed: int | torch.Generator,
) -> Drawn:
    """The ids that 4M draws: one multinomial over all rows, with probability 1 at temperature 0.

    Shapes:
        logits: float[R, V], rows of all items one after the other
    Args:
        seed: seed + step, or a CPU generator that has been seeded so (ROAR draws its order first,
            text draws one token after the other)
    """
    if temperature <= GREEDY_BELOW:
        ids = logits.argmax(dim=-1)
        return Drawn(ids, torch.ones_like(ids, dtype=torch.float32))
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    kept = filter_logits(logits.float(), top_k, top_p, original=True)
    probs = _probabilities(kept, temperature)
    ids = torch.multinomial(probs.cpu(), 1, generator=generator)[:, 0].to(logits.device)
    return Drawn(ids, _at(probs, ids))


def at_median(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits in which the median of some words has the probability of all of them.

    Shapes:
        logits: float[..., V]; returns the same
        ids: int64[n], the words in rising order of their amounts; none changes nothing
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
