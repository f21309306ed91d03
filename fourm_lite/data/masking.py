"""Which tokens a training sample gives and which it asks for: one mask rule a kind.

The input budget is dealt out first, then the target budget, of which a grid can take no more than
its input left. Everything is a pure function of the sample and a random source.

Source:
    4M (Mizrahi et al. 2023), section 2.2 and appendix A
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, ShapeError, UnknownNameError, suggest
from fourm_lite.modalities.spec import Modality
from fourm_lite.tokenization.vq.randomness import RandomSource
from fourm_lite.tokenization.words.spans import (
    KeepScheme,
    Marks,
    MaskedTokens,
    Spans,
    cut_targets,
    draw_spans,
    given_grid,
    given_text,
    lay_out_spans,
    one_group,
    truncate_chunks,
    wanted_grid,
    wanted_text,
)

Chunks = Sequence[Sequence[int]]
Sample = Mapping[str, Tensor | Chunks]
"""Per modality: grid int64[L]; pixels float32[C, H, W]; features float32[L, E]; a sequence is a
list of token ids, or of chunks of ids that are kept or hidden as a whole."""


def grid_mask(
    n: int, input_budget: int, target_budget: int | None, source: RandomSource
) -> tuple[Tensor, Tensor]:
    """Random cells to give, and random others to predict; `None` asks for all others.

    Shapes:
        returns: inputs bool[n], targets bool[n], never both at one cell
    """
    # The cell's own number after sorting is its rank; the original takes the inverse permutation.
    ranks = source.uniforms(n).argsort().numpy()
    inputs = ranks < input_budget
    wanted = n if target_budget is None else input_budget + target_budget
    return torch.from_numpy(inputs), torch.from_numpy(~inputs & (ranks < wanted))


def mask_grid(
    value: Tensor, n: int, input_budget: int, target_budget: int | None, source: RandomSource
) -> MaskedTokens:
    """A token map or a picture of n patches with a random mask."""
    inputs, targets = grid_mask(n, input_budget, target_budget, source)
    return MaskedTokens(value, inputs, targets, one_group(targets))


def mask_sequence(
    sequence: Sequence[int] | Chunks,
    *,
    max_tokens: int,
    input_budget: int | None,
    target_budget: int | None,
    marks: Marks,
    source: RandomSource,
    keep: KeepScheme = "random",
) -> MaskedTokens:
    """A text with masked spans, its [EOS] appended and what is too long cut off.

    Units:
        input_budget, target_budget: tokens, sentinels counted; `None` sets no limit
    Shapes:
        returns: arrays of 2 (max_tokens + 1) places, the target from `input_budget` on
    """
    chunks = closed_chunks(sequence, max_tokens=max_tokens, marks=marks)
    budget = None if input_budget is None else min(input_budget, max_tokens)
    drawn = draw_spans(chunks, budget=budget, marks=marks, source=source, keep=keep)
    targets = cut_targets(drawn.targets, target_budget, marks=marks, source=source)
    return lay_out_spans(
        Spans(drawn.inputs, targets), max_tokens=max_tokens, input_budget=budget, marks=marks
    )


def closed_chunks(
    sequence: Sequence[int] | Chunks, *, max_tokens: int, marks: Marks
) -> list[Sequence[int]]:
    """A sequence as chunks, with [EOS] at its end, as far as it fits.

    A list of token ids is cut between tokens, a list of chunks between chunks.
    """
    chunks = [[item] if isinstance(item, int) else list(item) for item in sequence]
    return truncate_chunks([*(c for c in chunks if c), [marks.eos]], max_tokens)


def mask_features(
    value: Tensor,
    *,
    max_tokens: int,
    input_budget: int,
    source: RandomSource,
    keep: KeepScheme = "random",
) -> MaskedTokens:
    """Foreign embeddings of which some are given; every run of hidden ones becomes a zero vector.

    Shapes:
        value: float32[L, E] -> float32[max_tokens, E], the rows in use first
    """
    total = min(len(value), max_tokens)
    # Places stand for the rows, negative numbers for the spans between them.
    spans = Marks(pad=0, eos=0, sentinels=tuple(-k for k in range(1, total + 4)))
    drawn = draw_spans(
        [[i] for i in range(total)], budget=input_budget, marks=spans, source=source, keep=keep
    )
    rows = torch.tensor(drawn.inputs, dtype=torch.int64)
    laid = value.new_zeros(max_tokens, *value.shape[1:])
    shown = rows >= 0
    laid[: len(rows)][shown] = value[rows[shown]]
    inputs = torch.arange(max_tokens) < len(rows)
    nothing = torch.zeros_like(inputs)
    return MaskedTokens(laid, inputs, nothing, nothing.int())


def give(value: Tensor | Chunks | Sequence[int], modality: Modality, marks: Marks) -> MaskedTokens:
    """Everything given, as in a fine-tuned transfer: captions in, depth out."""
    if modality.kind == "sequence":
        chunks = closed_chunks(_ids(value), max_tokens=modality.max_tokens, marks=marks)
        return given_text(chunks, max_tokens=modality.max_tokens, marks=marks)
    assert isinstance(value, Tensor)
    return given_grid(value, _places(modality, value))


def want(value: Tensor | Chunks | Sequence[int], modality: Modality, marks: Marks) -> MaskedTokens:
    """Everything asked for, nothing given: the other end of a transfer."""
    _check_target(modality)
    if modality.kind == "sequence":
        chunks = closed_chunks(_ids(value), max_tokens=modality.max_tokens, marks=marks)
        return wanted_text(chunks, max_tokens=modality.max_tokens, marks=marks)
    assert isinstance(value, Tensor)
    return replace(wanted_grid(modality.max_tokens), value=value)


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Masks whole samples.

    Units:
        modalities: name -> entry, of all that a mixture names
        mixtures: one is drawn a sample
        inputs, targets: tokens a sample
    Raises:
        UnknownNameError: a mixture names a modality that is not among `modalities`
        ConfigError: a mixture gives what is no input, or asks for what is no target
    """

    modalities: Mapping[str, Modality]
    mixtures: Sequence[Mixture]
    inputs: Budget
    targets: Budget
    marks: Marks

    def __post_init__(self) -> None:
        """Checks every name once, before any work."""
        for mixture in self.mixtures:
            for name in (*mixture.inputs, *mixture.targets, *mixture.keep):
                if name not in self.modalities:
                    raise UnknownNameError(
                        f"the mixture names {name!r}, which the model does not have."
                        f"{suggest(name, self.modalities)}"
                    )
            for name, alpha in mixture.targets.items():
                if alpha > 0:
                    _check_target(self.modalities[name])

    def __call__(self, sample: Sample, source: RandomSource) -> dict[str, MaskedTokens]:
        """The sample with a random part given and another asked for.

        Modalities that the sample lacks get no budget; they are absent from the result.
        """
        mixture = draw_mixture(self.mixtures, source)
        names = [name for name in self.modalities if name in sample]
        given, wanted = self._budgets(names, mixture, source)
        return {
            name: self._mask(name, sample[name], given[name], wanted[name], mixture, source)
            for name in names
        }

    def _budgets(
        self, names: Sequence[str], mixture: Mixture, source: RandomSource
    ) -> tuple[dict[str, int], dict[str, int]]:
        limits = [self.modalities[name].max_tokens for name in names]
        alphas = [mixture.inputs.get(name, 0.0) for name in names]
        given = token_budgets(alphas, limits, self.inputs.draw(source), source)
        left = [
            limit - count if self.modalities[name].kind == "grid" else limit
            for name, limit, count in zip(names, limits, given, strict=True)
        ]
        alphas = [mixture.targets.get(name, 0.0) for name in names]
        wanted = token_budgets(alphas, left, self.targets.draw(source), source)
        return dict(zip(names, given, strict=True)), dict(zip(names, wanted, strict=True))

    def _mask(
        self,
        name: str,
        value: Tensor | Chunks,
        given: int,
        wanted: int,
        mixture: Mixture,
        source: RandomSource,
    ) -> MaskedTokens:
        modality = self.modalities[name]
        if modality.kind == "sequence":
            return mask_sequence(
                _ids(value),
                max_tokens=modality.max_tokens,
                input_budget=given,
                target_budget=wanted,
                marks=self.marks,
                source=source,
                keep=mixture.keep.get(name, "random"),
            )
        assert isinstance(value, Tensor)
        if modality.kind == "features":
            return mask_features(
                value,
                max_tokens=modality.max_tokens,
                input_budget=given,
                source=source,
                keep=mixture.keep.get(name, "random"),
            )
        return mask_grid(value, _places(modality, value), given, wanted, source)


def _check_target(modality: Modality) -> None:
    if not modality.is_target:
        raise ConfigError(
            f"'{modality.name}' is no target: a decoder cannot predict {modality.kind}; "
            "give it as an input only"
        )


def _ids(value: Tensor | Chunks | Sequence[int]) -> Sequence[int] | Chunks:
    return value.tolist() if isinstance(value, Tensor) else value


def _places(modality: Modality, value: Tensor) -> int:
    """Token positions of a value: cells of a grid, patches of a picture, rows of embeddings."""
    if modality.kind == "pixels":
        return modality.max_tokens
    if modality.kind == "grid" and tuple(value.shape) != (modality.max_tokens,):
        raise ShapeError(
            f"'{modality.name}' expects int64[{modality.max_tokens}], got {list(value.shape)}; "
            f"another resolution is another modality: '{modality.stem}@448'"
        )
    return len(value)


def stack_masked(samples: Sequence[Mapping[str, MaskedTokens]]) -> TokenBatch:
    """A batch of masked samples; one that lacks a modality neither gives nor is asked for it."""
    if not samples:
        raise ShapeError("a batch needs at least one sample, got none")
    names = dict.fromkeys(name for sample in samples for name in sample)
    return TokenBatch({name: _stack([sample.get(name) for sample in samples]) for name in names})


def _stack(rows: Sequence[MaskedTokens | None]) -> Tokens:
    some = next(row for row in rows if row is not None)
    absent = MaskedTokens(
        torch.zeros_like(some.value),
        torch.zeros_like(some.inputs),
        torch.zeros_like(some.targets),
        torch.zeros_like(some.groups),
    )
    full = [absent if row is None else row for row in rows]
    return Tokens(
        torch.stack([row.value for row in full]),
        inputs=torch.stack([row.inputs for row in full]),
        targets=torch.stack([row.targets for row in full]),
        groups=torch.stack([row.groups for row in full]),
    )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How the budgets of a sample are shared.

    Units:
        inputs, targets: modality -> Dirichlet weight; one that is absent or 0 gets nothing
        weight: how often this mixture is drawn among several
        keep: modality -> how large a part of a sequence is kept; the default is "random"
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    weight: float = 1.0
    keep: Mapping[str, KeepScheme] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses negative weights."""
        for name, alpha in (*self.inputs.items(), *self.targets.items(), ("weight", self.weight)):
            if not 0 <= alpha < float("inf"):
                raise ConfigError(f"mixture weights are finite and >= 0, got {name} = {alpha}")


@dataclass(frozen=True)
class Budget:
    """Tokens of one sample, drawn evenly from low..high."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuses a range that holds nothing."""
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"a token budget needs 0 <= low <= high, got {self.low}..{self.high}")

    def draw(self, source: RandomSource) -> int:
        """One number of the range."""
        if self.low == self.high:
            return self.low
        return self.low + source.below(self.high - self.low + 1)


def draw_mixture(mixtures: Sequence[Mixture], source: RandomSource) -> Mixture:
    """One mixture, as often as its weight says."""
    total = sum(mixture.weight for mixture in mixtures)
    if not mixtures or total <= 0:
        raise ConfigError("give at least one mixture with a positive weight")
    if len(mixtures) == 1:
        return mixtures[0]
    place = source.uniform() * total
    for mixture in mixtures:
        place -= mixture.weight
        if place < 0:
            return mixture
    return mixtures[-1]


def token_budgets(
    alphas: Sequence[float], limits: Sequence[int], total: int, source: RandomSource
) -> list[int]:
    """A budget dealt out by Dirichlet shares, rounded down, and cut to each one's limit.

    What rounding leaves over is dealt out one by one, each to the largest share of a further draw.
    What a limit cuts off is not dealt out again, so fewer tokens than `total` may come out.
    """
    shares = source.dirichlet(alphas)
    counts = [int(share * total) for share in shares]
    if any(alpha > 0 for alpha in alphas):
        for _ in range(total - sum(counts)):
            further = source.dirichlet(alphas)
            counts[further.index(max(further))] += 1
    return [min(count, limit) for count, limit in zip(counts, limits, strict=True)]
