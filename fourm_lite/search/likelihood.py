"""Reranking with the weights that retrieved: how well query and candidate explain each other.

Three parts, each a number for a pair of query and candidate:

- ``cosine``: the search's own score
- ``codes``: mean log p(candidate's codes | query), one forward pass a query for any number of
  candidates, whose codes are looked up in the predicted distributions
- ``caption``: mean log p(query's text | candidate's codes), one teacher-forced pass a pair; the
  candidates' side is encoded once

The score is their weighted sum. The third part costs most, so it is asked for the first
``caption_depth`` by the other two; what is behind them stays behind. `fit_weights` chooses the
weights where right answers are known, by the likelihood of the right candidate under a softmax
over the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, ShapeError, suggest
from fourm_lite.model.likelihood import grid_log_probs, sequence_logits
from fourm_lite.nn.blocks import Context
from fourm_lite.retrieval.hits import Hits
from fourm_lite.search.spaces import Item, ModelSpace

Floats = npt.NDArray[np.float32]
PARTS = ("cosine", "codes", "caption")
DEFAULT_WEIGHTS: Mapping[str, float] = {"cosine": 6.5, "codes": 2.7, "caption": 0.3}
"""Where nothing was fitted: those of an early small model, from 250 photos of its val split."""
CAPTION_DEPTH = 20
CHUNK = 128
NEWTON_STEPS = 50
RIDGE = 1e-3


@dataclass(frozen=True)
class Candidates:
    """Candidates made ready for scoring: their codes, and what the decoder reads of them.

    Shapes:
        codes: int64[K, L]
        context: of K rows; None where no text is to be said
    """

    codes: Tensor
    context: Context | None = None


@dataclass(frozen=True)
class Likelihood:
    """Scores pairs of queries and candidates with a model.

    Args:
        space: the model and its target
        text: the modality that queries say in words and the model can predict from codes
    """

    space: ModelSpace
    text: str | None = None

    @classmethod
    def of(cls, space: Any) -> Likelihood:
        """The likelihoods of a space.

        Raises:
            ConfigError: a twin encoder, which predicts nothing
        """
        if not isinstance(space, ModelSpace):
            raise ConfigError(
                "a twin encoder has no likelihood to rerank by; use a 4M model, or a cross-encoder "
                "with load_reranker"
            )
        config = space.pipe.model.config
        spoken = {m.name for m in config.outputs if m.kind == "sequence"}
        both = [m.name for m in config.inputs if m.name in spoken and m.text_format == "text"]
        can_read = space.target.name in {m.name for m in config.inputs}
        return cls(space, both[0] if both and can_read else None)

    def texts(self, batch: TokenBatch) -> list[Tensor | None]:
        """For each item its text's ids as the decoder says them whole; None without a text."""
        if self.text is None or self.text not in batch:
            return [None] * batch.size
        tokens, marks = batch[self.text], self.space.pipe.marks
        found: list[Tensor | None] = []
        for ids, there in zip(tokens.value, tokens.inputs, strict=True):
            own = ids[there].tolist()
            whole = torch.tensor([marks.sentinel(1), *own, marks.sentinel(2)], device=ids.device)
            found.append(whole if own else None)
        return found

    @torch.inference_mode()
    def candidates(
        self, codes: npt.NDArray[Any], *, with_text: bool = True, batch_size: int = 64
    ) -> Candidates:
        """Encodes the candidates' side, once for all queries.

        Raises:
            ShapeError: not one row of the target's codes a candidate
        """
        entry, model = self.space.target, self.space.pipe.model
        ids = torch.from_numpy(np.asarray(codes).astype(np.int64)).to(model.device)
        if ids.ndim != 2 or ids.shape[1] != entry.max_tokens:
            raise ShapeError(
                f"candidates of '{entry.name}' are codes [K, {entry.max_tokens}], got "
                f"{list(ids.shape)}; was the index made with another target?"
            )
        if not with_text or self.text is None or not len(ids):
            return Candidates(ids)
        batches = [
            TokenBatch({entry.name: Tokens.given(part, length=entry.max_tokens)})
            for part in ids.split(batch_size)
        ]
        # Codes alone: every row has the same length, nothing is padded, so rows can be joined.
        return Candidates(
            ids, Context(torch.cat([model.encode(b).context.tokens for b in batches]))
        )

    @torch.inference_mode()
    def codes_scores(self, batch: TokenBatch, candidates: Candidates) -> Floats:
        """Mean log p(candidate's codes | query), float32[B, K], by one forward pass."""
        model, name = self.space.pipe.model, self.space.target.name
        context = model.encode(batch.without(name), batch_size=batch.size).context
        log_p = grid_log_probs(model, name, context, batch.size)  # [B, L, V]
        index = candidates.codes.T[None].expand(batch.size, -1, -1)  # [B, L, K]
        return log_p.gather(2, index).mean(dim=1).cpu().numpy()

    @torch.inference_mode()
    def text_scores(
        self,
        texts: Sequence[Tensor],
        candidates: Candidates,
        pairs: npt.NDArray[np.int64],
        progress: Callable[[int, int], None] | None = None,
    ) -> Floats:
        """Mean log p(text | candidate) of some pairs, float32[P].

        Shapes:
            pairs: int64[P, 2], numbers of a text and of a candidate
        """
        if self.text is None or candidates.context is None:
            raise ConfigError(
                f"this model cannot say a text from '{self.space.target.name}'; rerank by the "
                "weights cosine and codes"
            )
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(lengths[pairs[:, 0]], kind="stable")  # alike lengths together
        out = np.empty(len(pairs), np.float32)
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            chosen = [texts[i] for i in pairs[some, 0]]
            rows = torch.from_numpy(pairs[some, 1]).to(chosen[0].device)
            context = candidates.context.select(rows)
            out[some] = self._mean_log_p(chosen, context).cpu().numpy()
            if progress is not None:
                progress(start + len(some), len(order))
        return out

    def _mean_log_p(self, texts: Sequence[Tensor], context: Context) -> Tensor:
        """A text for each row of the context, padded to the longest: float32[B]."""
        assert self.text is not None
        ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        count = torch.tensor([len(text) - 1 for text in texts], device=ids.device)
        logits = sequence_logits(self.space.pipe.model, self.text, ids[:, :-1], context)
        log_p = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        there = torch.arange(log_p.shape[1], device=ids.device)[None] < count[:, None]
        return (log_p * there).sum(dim=1) / count


@dataclass(frozen=True)
class LikelihoodReranker:
    """Reranks the hits of one query; satisfies `retrieval.rerank.Reranker`.

    The query is an item (modality -> value); hits need the column ``codes``.

    Args:
        likelihood: the model
        weights: of the parts; 0 leaves a part out, and its passes
    """

    likelihood: Likelihood
    weights: Mapping[str, float] = field(default_factory=lambda: DEFAULT_WEIGHTS)
    caption_depth: int = CAPTION_DEPTH

    def __post_init__(self) -> None:
        check_weights(self.weights)

    def __call__(self, query: Item, candidates: Hits) -> Floats:
        """One score a candidate, float32[K].

        Raises:
            ConfigError: the hits have no codes, or nothing is left to score by
        """
        if not len(candidates):
            return np.zeros(0, np.float32)
        codes = codes_of(candidates)
        batch = self.likelihood.space.pipe.read([query])
        texts = [t for t in self.likelihood.texts(batch) if t is not None]
        parts = {"cosine": candidates.scores, "codes": self._codes(batch, codes)}
        by_text = self.weights.get("caption", 0.0)
        if not by_text or not texts:
            return weighted(parts, self.weights)

        def say(rows: npt.NDArray[np.int64]) -> Floats:
            return by_text * self._said(texts, codes[rows])

        return cascade(parts, self.weights, self.caption_depth, say)

    def parts(self, query: Item, codes: npt.NDArray[Any]) -> dict[str, Floats]:
        """The parts ``codes`` and, for a query with a text, ``caption``: float32[K] each."""
        batch = self.likelihood.space.pipe.read([query])
        texts = [t for t in self.likelihood.texts(batch) if t is not None]
        found = {"codes": self._codes(batch, codes)}
        return {**found, "caption": self._said(texts, codes)} if texts else found

    def _codes(self, batch: TokenBatch, codes: npt.NDArray[Any]) -> Floats:
        ready = self.likelihood.candidates(codes, with_text=False)
        return np.asarray(self.likelihood.codes_scores(batch, ready)[0])

    def _said(self, texts: Sequence[Tensor], codes: npt.NDArray[Any]) -> Floats:
        pairs = np.stack([np.zeros(len(codes), np.int64), np.arange(len(codes))], axis=1)
        return self.likelihood.text_scores(texts, self.likelihood.candidates(codes), pairs)


def cascade(
    parts: Mapping[str, Floats],
    weights: Mapping[str, float],
    depth: int,
    say: Callable[[npt.NDArray[np.int64]], Floats],
) -> Floats:
    """Scores with the costly part for the first `depth` by the cheap ones: float32[K].

    The others keep their order behind these.

    Args:
        parts: ``cosine`` and ``codes``
        weights: of all parts
        depth: how many get the costly part
        say: candidate numbers -> the costly part, weighted
    """
    cheap = {n: w for n, w in weights.items() if n in parts and w}
    first = weighted(parts, cheap)
    order = first if cheap else parts["cosine"]
    top = np.argsort(-order, kind="stable")[:depth]
    best = first[top] + say(top)
    out = order - order.max() + best.min() - 1.0
    out[top] = best
    return np.asarray(out, np.float32)


def codes_of(hits: Hits) -> npt.NDArray[Any]:
    """The codes [K, L] of hits.

    Raises:
        ConfigError: they have none
    """
    codes = hits.columns.get("codes")
    if codes is None or any(row is None for row in codes):
        raise ConfigError(
            "reranking by likelihood reads the candidates' codes, and these hits have none; "
            "build the index with fourm-lite index and a 4M model"
        )
    return np.stack(codes)


def weighted(parts: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """The weighted sum of the parts that are there: float32[K].

    Raises:
        ConfigError: none of the parts that have a weight is there
    """
    total = np.zeros(len(next(iter(parts.values()))), np.float64)
    used = [name for name, weight in weights.items() if weight and name in parts]
    if not used and any(weights.values()):
        raise ConfigError(
            f"this query has the parts {sorted(parts)}, the weights name {dict(weights)}; give "
            "one of them a weight"
        )
    for name in used:
        total += weights[name] * parts[name].astype(np.float64)
    return total.astype(np.float32)


def model_weights(space: Any) -> Mapping[str, Mapping[str, float]] | None:
    """The weights of both directions that a model's config holds, as `extra.rerank`."""
    stored = space.names.get("rerank") if isinstance(space, ModelSpace) else None
    if not isinstance(stored, Mapping) or not all(isinstance(w, Mapping) for w in stored.values()):
        return None
    for weights in stored.values():
        check_weights(weights)
    return stored


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses unknown parts and weights that are no numbers."""
    for name, value in weights.items():
        if name not in PARTS:
            raise ConfigError(f"there is no part {name!r} to weigh.{suggest(name, PARTS)}")
        if not np.isfinite(value):
            raise ConfigError(f"the weight of {name!r} is a finite number, got {value}")


def fit_weights(
    parts: Mapping[str, npt.NDArray[Any]], right: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Weights under which right candidates are likeliest: a softmax over each query's candidates.

    Maximises mean log sum of p(right candidates), p = softmax(sum of weight * part), by Newton's
    method with a small ridge on standardised parts. The sum's exponential then also is a
    probability among the candidates, which is what "calibrated" means here.

    Shapes:
        parts: by name float[Q, K]
        right: bool[Q, K]; queries without a right candidate, or with nothing else, teach nothing
    Raises:
        ConfigError: no query teaches anything
    Source:
        McFadden 1974, conditional logit
    """
    names = list(parts)
    check_weights(dict.fromkeys(names, 0.0))
    x = np.stack([np.asarray(parts[n], np.float64) for n in names], axis=-1)  # [Q, K, P]
    useful = right.any(axis=1) & ~right.all(axis=1)
    if not useful.any():
        raise ConfigError("no query has a right candidate among others; fit on more or deeper ones")
    x, truth = x[useful], right[useful]
    x = x - x.mean(axis=1, keepdims=True)
    scales = np.maximum(x.std(axis=(0, 1)), 1e-9)
    w = _conditional_logit(x / scales, truth)
    return dict(zip(names, (w / scales).tolist(), strict=True))


def _conditional_logit(
    x: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    w = np.zeros(x.shape[-1])
    ridge = RIDGE * np.eye(len(w))
    for _ in range(NEWTON_STEPS):
        z = x @ w
        p = _softmax(z)
        target = _softmax(np.where(right, z, -np.inf))
        gradient = np.einsum("qk,qkp->p", p - target, x) / len(x) + ridge @ w
        mean = np.einsum("qk,qkp->qp", p, x)
        second = np.einsum("qk,qkp,qkr->pr", p, x, x) - np.einsum("qp,qr->pr", mean, mean)
        step = np.linalg.solve(second / len(x) + ridge, gradient)
        w -= np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    return w


def _softmax(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
