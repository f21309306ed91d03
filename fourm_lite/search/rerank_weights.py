"""How the parts of a reranker's score are weighed, and how weights are fitted.

The score of a candidate is a weighted sum of its parts (see `search.likelihood_scores`). Costly
parts are asked for the first candidates by the cheap ones only. Weights are fitted where right
answers are known, by the likelihood of the right candidate under a softmax over the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError
from fourm_lite.search.search_file import DIRECTIONS, FittedSearch, Given, Weights, check_weights
from fourm_lite.unit import Floats

Parts = Mapping[str, npt.NDArray[Any]]
DEFAULT_WEIGHTS: Weights = {"cosine": 1.0}
"""Where nothing was fitted, which keeps the order of one pass. A likelihood may know less than the
cosine does, and then each weight above 0 makes the order worse: that of another model did."""
NOTHING_FITTED = (
    "no weights for reranking were fitted for this model and this way, so the order by cosine "
    "stays; fit them (fourm-lite calibrate for a model, index calibrate --rerank for an index) or "
    "give them (--rerank-weight)"
)
USUAL_TOKENS = 13
"""Of a caption, its end included."""
CAPTION_DEPTH = 20
FIT_QUERIES = 500
"""Queries that an index's weights are fitted on: enough to know a costly part's within a third."""
NEWTON_STEPS = 50
RIDGE = 1e-3


def cascade(
    parts: Mapping[str, Floats],
    weights: Mapping[str, float],
    depth: int,
    say: Callable[[npt.NDArray[np.int64]], Floats],
) -> Floats:
    """Scores with the costly part for the first `depth` by the cheap ones: float32[K].

    The others keep their order behind these.

    Args:
        parts: the cheap ones, ``cosine`` among them
        weights: of all parts
        depth: how many get the costly parts
        say: candidate numbers -> the costly parts, weighted
    """
    cheap = {n: w for n, w in weights.items() if n in parts and w}
    first = weighted(parts, cheap)
    order = first if cheap else parts["cosine"]
    top = np.argsort(-order, kind="stable")[:depth]
    best = first[top] + say(top)
    out = order - order.max() + best.min() - 1.0
    out[top] = best
    return np.asarray(out, np.float32)


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


@dataclass(frozen=True)
class Choice:
    """Weights of a reranker, what captions are predicted from, and where both come from.

    Units:
        source: where the weights were fitted; empty where nothing was
    """

    weights: Weights
    given: Given
    source: str = ""


def fitted_choice(
    learnt: FittedSearch | None, given: Given | None = None, direction: str = DIRECTIONS[0]
) -> Choice:
    """The weights that are kept beside a model; the cosine alone where none were fitted."""
    usual = given or (learnt.given if learnt is not None else "codes")
    weights = None if learnt is None else learnt.weights_of(direction, usual)
    if learnt is None or weights is None:
        return Choice(DEFAULT_WEIGHTS, usual)
    return Choice(weights, usual, learnt.fitted_on)


def words_share(texts: Sequence[Sized]) -> Floats:
    """How much the likelihoods of texts count beside a caption's: float32[T] in 0..1.

    A mean over the tokens of a text is no larger for a long one, but a long one tells more: a word
    alone leaves most of a photo unsaid, and its likelihood is mostly chance.

    Args:
        texts: ids between two sentinels

    >>> (13 * words_share([range(15), range(4), range(40)])).round().tolist()
    [13.0, 2.0, 13.0]
    """
    lengths = np.array([len(text) - 2 for text in texts], np.float32)
    return np.clip(lengths / USUAL_TOKENS, 0.0, 1.0)


def fit_weights(parts: Parts, right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Weights under which right candidates are likeliest: a softmax over each query's candidates.

    Maximises mean log sum of p(right candidates), p = softmax(sum of weight * part), by Newton's
    method with a small ridge on standardised parts. The sum's exponential then also is a
    probability among the candidates, which is what "calibrated" means here. Every part is larger
    where a candidate fits better, so no weight is below 0: a part that would get one says nothing
    that can be trusted, and is left out.

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
    x, truth = _lessons(parts, right)
    scales = np.maximum(x.std(axis=(0, 1)), 1e-9)
    used = np.ones(len(names), bool)
    w = np.zeros(len(names))
    while used.any():
        w = np.zeros(len(names))
        w[used] = _conditional_logit(x[..., used] / scales[used], truth)
        if (w >= 0).all():
            break
        used[int(w.argmin())] = False
    return dict(zip(names, np.maximum(w / scales, 0.0).tolist(), strict=True))


def log_likelihood(
    parts: Parts, right: npt.NDArray[np.bool_], weights: Mapping[str, float]
) -> float:
    """Mean log probability of the right candidates under weights, over queries that have one."""
    return float(_log_likelihoods(parts, right, weights).mean())


def careful(
    parts: Parts, right: npt.NDArray[np.bool_], weights: dict[str, float], costly: Sequence[str]
) -> dict[str, float]:
    """The weights with the least share of the costly ones that explains the answers as well.

    As well is within one standard error. What the fit gains beyond that is not sure even on queries
    like these, and on other galleries a large weight does more harm than a small one.

    Source:
        Breiman et al. 1984, the rule of one standard error
    """
    whole = _log_likelihoods(parts, right, weights)
    least = whole.mean() - whole.std() / np.sqrt(len(whole))
    for share in np.linspace(0, 1, 21)[:-1]:
        some = {n: w * float(share) if n in costly else w for n, w in weights.items()}
        if log_likelihood(parts, right, some) >= least:
            return some
    return weights


def _log_likelihoods(
    parts: Parts, right: npt.NDArray[np.bool_], weights: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Of each query that teaches something."""
    x, truth = _lessons(parts, right)
    z = x @ np.array([weights[name] for name in parts])
    total = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
    best = np.where(truth, z, -np.inf)
    top = best.max(axis=1, keepdims=True)
    found = np.log(np.exp(best - top).sum(axis=1)) + top[:, 0]
    return np.asarray(found - total)


@dataclass(frozen=True)
class Fit:
    """Weights of a cascade, and how well they explain the right answers.

    Units:
        log_p: mean log probability of a right candidate among those of the costly stage, to
            choose between costly parts by; minus infinity where there is none
    """

    weights: dict[str, float]
    log_p: float


def fit_cascade(
    cheap: Parts,
    right: npt.NDArray[np.bool_],
    depth: int,
    say: Callable[[npt.NDArray[np.int64]], Parts] | None,
) -> Fit:
    """Weights as a cascade uses them: cheap parts on all candidates, then costly ones on the first.

    The cheap parts are weighed on all candidates, then their sum against the costly parts on the
    first `depth` by that sum.

    Shapes:
        cheap: by name float[Q, K], right: bool[Q, K]
        say: candidate places int64[Q, depth] -> the costly parts by name float[Q, depth]
    """
    weights = fit_weights(cheap, right)
    total = np.sum([weights[n] * np.asarray(cheap[n], np.float64) for n in cheap], axis=0)
    top = np.argsort(-total, axis=1, kind="stable")[:, :depth]
    near = np.take_along_axis(right, top, axis=1)
    # the sum goes under the name of the cosine, which the second stage does not know by itself
    stage = {"cosine": np.take_along_axis(total, top, axis=1)}
    if say is None or not _teaches(near).any():
        return Fit(weights, -np.inf)
    stage |= say(top)
    said = [name for name in stage if name != "cosine"]
    later = careful(stage, near, fit_weights(stage, near), said)
    log_p = log_likelihood(stage, near, later)
    factor = later.pop("cosine")
    return Fit({**{name: factor * w for name, w in weights.items()}, **later}, log_p)


def _lessons(
    parts: Parts, right: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Parts float64[Q, K, P], centred over the candidates, of queries that teach something."""
    useful = _teaches(right)
    if not useful.any():
        raise ConfigError("no query has a right candidate among others; fit on more or deeper ones")
    x = np.stack([np.asarray(part, np.float64) for part in parts.values()], axis=-1)[useful]
    return x - x.mean(axis=1, keepdims=True), right[useful]


def _teaches(right: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.asarray(right.any(axis=1) & ~right.all(axis=1))


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
