"""From a batch to unit vectors: predict the codes of a global embedding, decode, normalise.

The default is the *expected* embedding: code vectors averaged under the predicted distribution, in
one pass. With several steps each position counts with the distribution that it was decided from.
Where no global embedding is predicted the vector is the mean over an encoder's tokens, as the
family says (`families.masked.Pooled`): over the context that the decoder reads for AION-1, over the
encoder's output for the pictures for TerraMind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fourm_lite.batch import TokenBatch
from fourm_lite.embedders.base import unit_length
from fourm_lite.errors import ConfigError, FourMError, check_choice, check_most
from fourm_lite.families.masked import Pooled, fork_of
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import fitted
from fourm_lite.pipeline.readers import collate, find_modality
from fourm_lite.pipeline.together import alike, thoughts
from fourm_lite.pipeline.tokenizers import Tokenizers, places
from fourm_lite.progress import Progress
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler, with_wanted
from fourm_lite.sampling.schedule import MAX_STEPS
from fourm_lite.sampling.state import StepResult
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.spans import Marks

Decode = Literal["argmax", "sample", "expected"]
THINKS_OF_NOTHING = "a global embedding is predicted at once: leave out `think`"


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is predicted, and how the prediction becomes a vector.

    Args:
        entry: the global embedding
        tokenizer: its tokenizer, whose decoder gives the vectors
        decode: expected, argmax or sample
        steps: forward passes
        samples: with decode="sample": vectors drawn an item
    """

    entry: Modality
    tokenizer: VQTokenizer
    decode: Decode = "expected"
    steps: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        check_choice("decode", self.decode, of=get_args(Decode))
        check_most(MAX_STEPS, steps=self.steps, samples=self.samples)
        if self.samples < 1 or (self.samples > 1 and self.decode != "sample"):
            raise ConfigError(f"samples={self.samples} needs decode='sample', got {self.decode!r}")


def require_vector(entry: Modality, tokenizer: VQTokenizer) -> None:
    """Refuses a target that is a map of many places, each with its own vector or pixel.

    Raises:
        ConfigError: see above
    """
    grid = places(entry, tokenizer)
    if grid is not None and entry.max_tokens > 1:
        raise ConfigError(
            f"'{entry.name}' is a map of {grid[0]} x {grid[1]} places, a search needs one vector; "
            "name a global embedding, such as tok_dinov2_global, or make the map with generate"
        )


def global_embedding(
    outputs: Iterable[Modality], tokenizers: Tokenizers, target: str | None = None
) -> Modality:
    """The entry of a global embedding, never of a map: the named one, or a model's first.

    Raises:
        FourMError: the model predicts none
    """
    entries = {m.name: m for m in outputs if m.kind == "grid"}
    if target is not None:
        named = entries[find_modality(target, entries, role="target")]
        require_vector(named, tokenizers.vq(named))
        return named
    learned = [m for m in entries.values() if m.pos_embed == "learned"]
    if not learned:
        raise FourMError(
            f"this model predicts no global embedding; its targets are {sorted(entries)}; "
            "name one that is a vector, or take a model that has one: EPFL-VILAB/4M-21_B"
        )
    return learned[0]


def embed_batch(
    model: FourM, batch: TokenBatch, plan: EmbeddingPlan, seeds: Sequence[int], marks: Marks
) -> npt.NDArray[np.float32]:
    """Unit vectors float32[B, E]; of several samples the direction of their mean.

    Raises:
        FourMError: the prediction is not finite
    """
    drawn = functional.normalize(sample_vectors(model, batch, plan, seeds, marks), dim=-1)
    return _finite(functional.normalize(drawn.mean(dim=1), dim=-1)).cpu().numpy()


def _finite(vectors: Tensor) -> Tensor:
    if not bool(torch.isfinite(vectors).all()):
        raise FourMError(
            "the embedding holds numbers that are not finite; were the weights or inputs damaged?"
        )
    return vectors


@torch.inference_mode()
def sample_vectors(
    model: FourM, batch: TokenBatch, plan: EmbeddingPlan, seeds: Sequence[int], marks: Marks
) -> Tensor:
    """Decoded vectors float32[B, samples, E] in the network's own scale, not normalised."""
    entry, tokenizer, samples = plan.entry, plan.tokenizer, plan.samples
    temperature = 1.0 if plan.decode == "sample" else 0.0
    # With several steps the surest codes are decided first, which only MaskGIT's order does.
    scheme: Literal["roar", "maskgit"] = "roar" if plan.steps == 1 else "maskgit"
    target = Target(entry.name, scheme=scheme, steps=plan.steps, temperature=temperature)
    many = [seed * samples + i for seed in seeds for i in range(samples)]
    batch = with_wanted(batch, entry, marks).repeat(samples)
    tokens = batch[entry.name]
    probs = None
    if plan.decode == "expected":
        probs = functional.one_hot(tokens.value, entry.vocab_size or 0).float()
    if bool(tokens.targets.any()):
        for result in Sampler(model, marks=marks).iterate(batch, Plan.of(target), seed=many):
            if probs is not None:
                probs = _collect(probs, result, tokens.targets)
            tokens = result.batch[entry.name]
    if probs is not None:
        latents = tokenizer.expected_latents(probs)
    else:
        latents = tokenizer.lookup(tokens.value, grid=places(entry, tokenizer))
    values = tokenizer.decode(latents).float()
    return values.flatten(1).unflatten(0, (-1, samples))


def _collect(probs: Tensor, result: StepResult, undecided: Tensor) -> Tensor:
    """Puts in the distributions of the positions that this step offered: float32[B, L, V].

    A decided position is not offered again, so it keeps the distribution that it came from;
    padded candidates of a row were given and keep their one code.
    """
    offered = torch.zeros_like(undecided).scatter(1, result.candidates, True) & undecided
    index = result.candidates[..., None].expand_as(result.logits)
    now = probs.scatter(1, index, result.logits.softmax(dim=-1))
    return torch.where(offered[..., None], now, probs)


def dispersion(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How ambiguous a query is: 1 minus the length of the mean of its sampled unit vectors.

    Shapes:
        samples: float32[N, n, E], unit length
        returns: float32[N] in 0..1; 0 where all samples agree
    """
    return 1.0 - np.linalg.norm(samples.mean(axis=1), axis=-1)


def pooled_of(config: FourMConfig) -> Pooled | None:
    """What is averaged to a vector; None where a global embedding is predicted instead."""
    if any(m.kind == "grid" and m.pos_embed == "learned" for m in config.outputs):
        return None
    return fork_of(config.modalities).pooled


def embed_pooled(
    model: FourM,
    batches: Iterable[Sequence[TokenBatch]],
    think: Plan | None,
    seeds: Sequence[int],
    marks: Marks,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Unit vectors float32[N, D] of items, each a batch of one, and of what is thought of them.

    Args:
        model: of any size
        batches: the items, some at a time
        think: what is generated first and read with the rest
        seeds: one an item
        marks: special ids of its texts
        progress: called with (items done, items in all)
    """
    first = None if think is None else thoughts(think, model.config)
    vectors = np.empty((len(seeds), model.config.dim), np.float32)
    done = 0
    for items in batches:
        for rows in alike(model, items):
            batch = collate([items[row] for row in rows])
            if first is not None:
                own, drawn = fitted(model, batch, first.names), [seeds[done + row] for row in rows]
                batch = Sampler(own, marks=marks).run(batch, first, seed=drawn)
            vectors[[done + row for row in rows]] = pooled_vectors(fitted(model, batch, []), batch)
        done += len(items)
        if progress is not None:
            progress(done, len(seeds))
    return vectors


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
    return _finite((tokens * weights).sum(1) / weights.sum(1).clamp(min=1))
