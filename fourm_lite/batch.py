"""The batch as a value: tokens of several modalities, and which of them are given or wanted.

Unusual: masks are positive (True = present) and nothing is ever written in place; a step of
generation returns a new batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.errors import FourMError, ShapeError, UnknownNameError, suggest
from fourm_lite.modalities.spec import Modality


@dataclass(frozen=True)
class Tokens:
    """One modality of a batch.

    Shapes:
        value: by Kind: float[B, C, H, W] of pixels, int64[B, L] of a grid or a sequence,
            float[B, L, E] of features
        inputs: bool[B, L], True where the encoder reads the token
        targets: bool[B, L], True where the decoder predicts it
        groups: int[B, L] or None; k at the first of k targets that see each other, 0 at the others;
            None: all targets of a grid see each other, those of a sequence see the earlier ones
    """

    value: Tensor
    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        """Checks what any kind must hold."""
        if self.inputs.dtype != torch.bool or self.targets.dtype != torch.bool:
            raise ShapeError(
                f"masks must be bool, got {self.inputs.dtype} and {self.targets.dtype}"
            )
        same = self.inputs.shape == self.targets.shape and self.inputs.ndim == 2
        if not same or self.value.shape[0] != self.inputs.shape[0]:
            raise ShapeError(
                "inputs and targets must both be bool[B, L] for a value of batch size B, got "
                f"{list(self.inputs.shape)}, {list(self.targets.shape)} and "
                f"{list(self.value.shape)}"
            )

    @classmethod
    def given(cls, value: Tensor, valid: Tensor | None = None, *, length: int) -> Tokens:
        """A value that the encoder reads, all of it or where `valid`.

        Shapes:
            valid: bool[B, length]
        """
        if valid is None:
            valid = torch.ones(value.shape[0], length, dtype=torch.bool, device=value.device)
        return cls(value, inputs=valid, targets=torch.zeros_like(valid))

    @classmethod
    def wanted(
        cls, modality: Modality, batch_size: int, device: torch.device | str | None = None
    ) -> Tokens:
        """An empty grid, every position to be predicted."""
        if modality.kind != "grid":
            raise FourMError(
                f"only a grid can be wanted whole, '{modality.name}' is of kind {modality.kind}; "
                "a sequence starts from a sentinel: see fourm_lite.sampling"
            )
        shape = (batch_size, modality.max_tokens)
        nothing = torch.zeros(shape, dtype=torch.bool, device=device)
        value = torch.zeros(shape, dtype=torch.int64, device=device)
        return cls(value, inputs=nothing, targets=~nothing)

    @property
    def size(self) -> int:
        """Batch size."""
        return self.inputs.shape[0]

    @property
    def length(self) -> int:
        """Token positions of one sample."""
        return self.inputs.shape[1]

    def reveal(self, positions: Tensor, ids: Tensor, valid: Tensor | None = None) -> Tokens:
        """Writes predicted ids at the given positions; they become inputs.

        Shapes:
            positions, ids: int64[B, k]
            valid: bool[B, k] or None; positions where it is False are left alone
            returns: same shapes; the argument is unchanged
        Raises:
            ShapeError: `positions` and `ids` differ in shape
        Source:
            MaskGIT (Chang et al. 2022), Algorithm 1
        """
        if positions.shape != ids.shape:
            raise ShapeError(
                f"positions {list(positions.shape)} and ids {list(ids.shape)} must have one shape"
            )
        if valid is None:
            valid = torch.ones_like(positions, dtype=torch.bool)
        ids = torch.where(valid, ids, self.value.gather(1, positions))
        inputs = valid | self.inputs.gather(1, positions)
        targets = ~valid & self.targets.gather(1, positions)
        return replace(
            self,
            value=self.value.scatter(1, positions, ids),
            inputs=self.inputs.scatter(1, positions, inputs),
            targets=self.targets.scatter(1, positions, targets),
        )

    def hidden(self) -> Tokens:
        """The same tokens with nothing given to the encoder."""
        return replace(self, inputs=torch.zeros_like(self.inputs))

    def padded(self, length: int) -> Tokens:
        """The same with positions added at the end that are neither given nor wanted.

        Shapes:
            self: a grid, a sequence or features, of at most `length` positions
        """
        missing = length - self.length
        if missing == 0:
            return self
        widths = (0, 0) * (self.value.ndim - 2) + (0, missing)
        groups = None if self.groups is None else F.pad(self.groups, (0, missing))
        return Tokens(
            F.pad(self.value, widths),
            inputs=F.pad(self.inputs, (0, missing)),
            targets=F.pad(self.targets, (0, missing)),
            groups=groups,
        )

    def rows(self, index: Tensor | slice) -> Tokens:
        """Some samples of the batch."""
        groups = None if self.groups is None else self.groups[index]
        return Tokens(self.value[index], self.inputs[index], self.targets[index], groups)

    def repeat(self, n: int) -> Tokens:
        """Every sample n times, next to each other."""
        index = torch.arange(self.size, device=self.inputs.device).repeat_interleave(n)
        return self.rows(index)

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        groups = None if self.groups is None else self.groups.to(device)
        return Tokens(
            self.value.to(device), self.inputs.to(device), self.targets.to(device), groups
        )


class TokenBatch(Mapping[str, Tokens]):
    """Several modalities of the same samples; frozen, checked once on construction."""

    def __init__(self, tokens: Mapping[str, Tokens]) -> None:
        self._tokens = dict(tokens)
        sizes = {name: t.size for name, t in self._tokens.items()}
        if len(set(sizes.values())) > 1:
            raise ShapeError(f"all modalities of a batch need one batch size, got {sizes}")

    def __getitem__(self, name: str) -> Tokens:
        try:
            return self._tokens[name]
        except KeyError:
            raise UnknownNameError(
                f"this batch holds {sorted(self._tokens)}, not {name!r}.{suggest(name, self)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tokens

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"TokenBatch({ {n: list(t.value.shape) for n, t in self._tokens.items()} })"

    @property
    def size(self) -> int:
        """Batch size; 0 for a batch without modalities."""
        return next((t.size for t in self._tokens.values()), 0)

    @property
    def device(self) -> torch.device:
        """The device of the first modality."""
        first = next(iter(self._tokens.values()), None)
        return torch.device("cpu") if first is None else first.inputs.device

    def with_(self, tokens: Mapping[str, Tokens]) -> TokenBatch:
        """The batch with some modalities added or replaced."""
        return TokenBatch({**self._tokens, **tokens})

    def without(self, *names: str) -> TokenBatch:
        """The batch without some modalities."""
        return TokenBatch({n: t for n, t in self._tokens.items() if n not in names})

    def only(self, *names: str) -> TokenBatch:
        """The batch with these modalities alone, in this order."""
        return TokenBatch({n: self[n] for n in names})

    def rows(self, index: Tensor | slice) -> TokenBatch:
        """Some samples of the batch."""
        return TokenBatch({n: t.rows(index) for n, t in self._tokens.items()})

    def repeat(self, n: int) -> TokenBatch:
        """Every sample n times, next to each other."""
        return TokenBatch({name: t.repeat(n) for name, t in self._tokens.items()})

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same on another device."""
        return TokenBatch({n: t.to(device) for n, t in self._tokens.items()})
