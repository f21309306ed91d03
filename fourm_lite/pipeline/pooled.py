"""The vector of an item where no global embedding is predicted: the mean over an encoder's tokens.

What that mean is taken of is a value of the family (`families.masked.Pooled`): the context that the
decoder reads for AION-1, the encoder's output over the pictures for TerraMind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch
from fourm_lite.embedders.base import unit_length
from fourm_lite.errors import FourMError
from fourm_lite.families.masked import Pooled, fork_of
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import fitted
from fourm_lite.progress import Progress
from fourm_lite.sampling.plan import Plan
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.tokenization.words.spans import Marks


def pooled_of(config: FourMConfig) -> Pooled | None:
    """What is averaged to a vector; None where a global embedding is predicted instead."""
    if any(m.kind == "grid" and m.pos_embed == "learned" for m in config.outputs):
        return None
    return fork_of(config.modalities).pooled


def embed_pooled(
    model: FourM,
    batches: Iterable[TokenBatch],
    think: Plan | None,
    seeds: Sequence[int],
    marks: Marks,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Unit vectors float32[N, D] of batches, one after the other, and of what is thought of them.

    Args:
        model: of any size
        batches: the items
        think: what is generated first and read with the rest
        seeds: one an item
        marks: special ids of its texts
        progress: called with (items done, items in all)
    """
    vectors: list[npt.NDArray[np.float32]] = []
    done = 0
    for batch in batches:
        if think is not None:
            own = fitted(model, batch, [target.modality for target in think.targets])
            seen = seeds[done : done + batch.size]
            batch = Sampler(own, marks=marks).run(batch, think, seed=seen)
        vectors.append(pooled_vectors(fitted(model, batch, []), batch))
        done += batch.size
        if progress is not None:
            progress(done, len(seeds))
    return np.concatenate(vectors)


@torch.inference_mode()
def pooled_vectors(model: FourM, batch: TokenBatch) -> npt.NDArray[np.float32]:
    """Unit vectors float32[B, D] of the items of a batch; none depends on the others.

    Raises:
        FourMError: an item gives nothing, or the result is not finite
    """
    pooled = fork_of(model.config.modalities).pooled or Pooled("output")
    encoded = model.encode(batch)
    packed = encoded.packed
    tokens = encoded.output if pooled.of == "output" else encoded.context.tokens
    counted = packed.valid
    if not pooled.sequences:
        kinds = [model.modality(name).kind == "sequence" for name in model.names]
        words = torch.tensor(kinds, device=counted.device)[packed.modality.clamp(min=0)]
        shown = counted & ~words
        counted = torch.where(shown.any(1, keepdim=True), shown, counted)
    return unit_length(_mean(tokens, counted).float().cpu().numpy())


def _mean(tokens: Tensor, counted: Tensor) -> Tensor:
    weights = counted.to(tokens.dtype)[..., None]
    found = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
    if not bool(torch.isfinite(found).all()):
        raise FourMError(
            "the embedding holds numbers that are not finite; were the weights or inputs damaged?"
        )
    return found
