"""From aligned samples to batches: a batch is a function of the step, the seed and the process.

Unusual: one mixture a batch, not one a sample, so that a batch of captions is not padded to the
length of a batch of pixels; each mixture has its own budgets and its own batch size.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from fourm_lite.batch import TokenBatch
from fourm_lite.data.masking import Budget, Masker, Mixture, Sample, stack_masked
from fourm_lite.data.unread import Replaced
from fourm_lite.errors import ConfigError
from fourm_lite.modalities.spec import Modality
from fourm_lite.tokenization.vq.randomness import RandomSource, TorchSource
from fourm_lite.tokenization.words.spans import KeepScheme, Marks

_BLOCK = 4096  # steps whose components are drawn at once
_DRAWING = threading.Lock()  # what is drawn ahead of its use is shared by the threads that read it


class Samples(Protocol):
    """Aligned samples: the same crop for every modality of one of them."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells these samples from others."""
        ...

    def sample(self, index: int, names: Sequence[str], source: RandomSource) -> Sample:
        """The named modalities of one sample; what it lacks is left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Component:
    """One kind of batch: what is given, what is asked for, how many samples.

    Units:
        weight: how often it is drawn among the components
        input_budget, target_budget: tokens of a sample, drawn evenly from low..high
        inputs, targets: modality -> Dirichlet weight
        keep: modality -> how large a part of a sequence stays in the input
        labels: what a teacher made of the samples, for losses: neither given nor predicted
        source: which of the loader's samples it reads
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    input_budget: tuple[int, int]
    target_budget: tuple[int, int]
    batch_size: int
    weight: float = 1.0
    keep: Mapping[str, KeepScheme] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    source: str = "train"
    name: str = ""

    def __post_init__(self) -> None:
        """Refuses what can give no batch."""
        if self.batch_size < 1 or self.weight <= 0:
            raise ConfigError(
                f"a component needs batch_size >= 1 and weight > 0, got {self.batch_size} and "
                f"{self.weight}"
            )

    @property
    def names(self) -> list[str]:
        """Every modality that it touches, inputs first."""
        return list(dict.fromkeys((*self.inputs, *self.targets)))

    def masker(self, modalities: Mapping[str, Modality], marks: Marks) -> Masker:
        """The mask rule of its samples."""
        mixture = Mixture(inputs=self.inputs, targets=self.targets, keep=self.keep)
        return Masker(
            modalities={name: modalities[name] for name in self.names if name in modalities},
            mixtures=[mixture],
            inputs=Budget(*self.input_budget),
            targets=Budget(*self.target_budget),
            marks=marks,
        )


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with the budgets that it is packed to: the most tokens that a row of it has.

    Shapes:
        labels: name -> float[B, ...], what a teacher made of the rows
    """

    batch: TokenBatch
    input_budget: int
    target_budget: int
    component: str = ""
    labels: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same on another device."""
        labels = {name: value.to(device) for name, value in self.labels.items()}
        return replace(self, batch=self.batch.to(device), labels=labels)


class MaskedStream:
    """Masked batches for pretraining."""

    def __init__(
        self,
        samples: Mapping[str, Samples],
        components: Sequence[Component],
        modalities: Mapping[str, Modality],
        marks: Marks,
        *,
        seed: int = 0,
    ) -> None:
        if not components:
            raise ConfigError("give at least one component")
        for component in components:
            if component.source not in samples:
                raise ConfigError(
                    f"a component reads {component.source!r}, there is only {sorted(samples)}"
                )
        self.samples, self.components, self.seed = dict(samples), list(components), seed
        self._maskers = [c.masker(modalities, marks) for c in components]
        self._replaced = {name: Replaced(len(s)) for name, s in samples.items()}
        self._orders = [Orders(len(samples[c.source]), seed, i) for i, c in enumerate(components)]
        weights = np.array([c.weight for c in components])
        self._shares = weights / weights.sum()
        self._turns: list[Any] = []

    @property
    def fingerprint(self) -> str:
        """A hash of the samples, the components and the seed."""
        rows = [[n, s.fingerprint, len(s)] for n, s in sorted(self.samples.items())]
        parts = [
            {k: _plain(v) for k, v in vars(c).items() if k != "labels" or v}
            for c in self.components
        ]
        text = json.dumps([rows, parts, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def turn(self, step: int) -> tuple[int, int]:
        """Which component makes the batch of a step, and how many it made before."""
        block, within = divmod(step, _BLOCK)
        with _DRAWING:
            while len(self._turns) <= block:
                rng = np.random.default_rng((self.seed, len(self._turns)))
                drawn = rng.choice(len(self.components), p=self._shares, size=_BLOCK)
                self._turns.append(drawn)
        drawn = self._turns[block]
        which = int(drawn[within])
        before = sum(int((turns == which).sum()) for turns in self._turns[:block])
        return which, before + int((drawn[:within] == which).sum())

    def epoch(self, step: int) -> float:
        """Expected passes over the largest source before a step."""
        largest = max(self.samples, key=lambda name: len(self.samples[name]))
        seen = step * sum(
            share * c.batch_size
            for share, c in zip(self._shares, self.components, strict=True)
            if c.source == largest
        )
        return float(seen / len(self.samples[largest]))

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> MaskedBatch:
        """The batch of one process at a step."""
        which, turn = self.turn(step)
        component, masker = self.components[which], self._maskers[which]
        samples, replaced = self.samples[component.source], self._replaced[component.source]
        names = [*component.names, *component.labels]
        rows, labels = [], []
        for slot in range(component.batch_size):
            # Each component goes through its samples pass by pass; processes take turns in it.
            place = (turn * component.batch_size + slot) * world + rank
            index = self._orders[which][place]
            seed = _mixed(self.seed, place, which)

            def drawn(index: int, seed: int = seed) -> tuple[Sample, TorchSource]:
                source = TorchSource.seeded(seed)
                return samples.sample(index, names, source), source

            _, (sample, source) = replaced.read(index, drawn)
            rows.append(masker(sample, source))
            labels.append([sample[name] for name in component.labels])
        batch = stack_masked(rows)
        given = _longest([t.inputs for t in batch.values()])
        wanted = _longest([t.targets for t in batch.values()])
        said = {
            name: torch.stack([row[i] for row in labels])  # type: ignore[misc]
            for i, name in enumerate(component.labels)
        }
        return MaskedBatch(batch, given, wanted, component.name, said)


class Orders:
    """An endless order over n samples: each pass is a new permutation, known without the others."""

    def __init__(self, n: int, seed: int, which: int = 0) -> None:
        if n < 1:
            raise ConfigError("a stream needs at least one sample, got none")
        self.n, self._key = n, (seed, which)
        self._passes: dict[int, Any] = {}

    def __getitem__(self, place: int) -> int:
        number, within = divmod(place, self.n)
        with _DRAWING:
            if number not in self._passes:
                if len(self._passes) > 2:
                    self._passes.pop(next(iter(self._passes)))
                rng = np.random.default_rng((*self._key, number))
                self._passes[number] = rng.permutation(self.n)
            return int(self._passes[number][within])


def _longest(masks: Sequence[torch.Tensor]) -> int:
    return int(torch.stack([m.sum(dim=1) for m in masks]).sum(dim=0).max())


def _mixed(seed: int, place: int, which: int) -> int:
    text = f"{seed}:{place}:{which}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ArrayStream:
    """Plain batches of tensors for tokenizers: rows of one array-like, transformed one by one.

    Units:
        values: anything with len and values[i] -> float[C, H, W] or int64[H, W]
        augment: (value, rng) -> value, or None
    """

    values: Any
    batch_size: int
    seed: int = 0
    augment: Any = None
    name: str = ""
    replaced: Replaced = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Begins with nothing lost."""
        object.__setattr__(self, "replaced", Replaced(len(self.values)))

    @property
    def fingerprint(self) -> str:
        """The name and size of the data, the batch size and the seed."""
        return f"{self.name}:{len(self.values)}:{self.batch_size}:{self.seed}"

    def epoch(self, step: int) -> float:
        """Passes over the data before a step."""
        return step * self.batch_size / len(self.values)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> torch.Tensor:
        """The batch of one process at a step."""
        order = self._order
        rows = []
        for slot in range(self.batch_size):
            place = (step * self.batch_size + slot) * world + rank
            value = torch.as_tensor(self.replaced.read(order[place], self.values.__getitem__)[1])
            if self.augment is not None:
                value = self.augment(value, np.random.default_rng((self.seed, place)))
            rows.append(value)
        return torch.stack(rows)

    @property
    def _order(self) -> Orders:
        return Orders(len(self.values), self.seed)
