"""Numbers by a table of values: a token is the first entry that is not below the number.

So codes round up, never to the nearest; NaN and what lies above the table take the last entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError, ShapeError, suggest

Function = Callable[[Tensor], Tensor]
# What a config may name; nothing else of torch is reached from a file
FUNCTIONS: dict[str, Function] = {
    name: getattr(torch, name)
    for name in (
        "arcsinh", "sinh", "arctanh", "tanh", "log", "log1p", "log10", "log2", "exp", "expm1",
        "exp2", "sqrt", "square", "sin", "arcsin", "cos", "arccos", "arctan", "tan",
    )
}  # fmt: skip


@dataclass(frozen=True)
class ScalarCodec:
    """Numbers to tokens; one table, or one for each column of float[B, C].

    Shapes:
        tables: float32[V] or float32[C, V], rising
    Units:
        least: numbers at or below it are set to it before the functions
    """

    tables: Tensor
    forward: tuple[Function, ...] = ()
    back: tuple[Function, ...] = ()
    least: float | None = None

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.tables.shape[-1]

    def tokenize(self, raw: Tensor) -> Tensor:
        """Tokens int64 of numbers float[B], or float[B, C]; the argument is unchanged."""
        values = self._columns(torch.as_tensor(raw, dtype=torch.float32))
        if self.least is not None:
            low = torch.tensor(self.least)
            values = torch.where(values <= low, low, values)
        for function in self.forward:
            values = function(values)
        if self.tables.ndim == 1:
            return torch.bucketize(values, self.tables[:-1])
        columns = [
            torch.bucketize(column.contiguous(), table[:-1])
            for column, table in zip(values.unbind(1), self.tables, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def detokenize(self, tokens: Tensor, **options: Any) -> Tensor:
        """The numbers of tokens, in the shape of the tokens.

        Raises:
            ShapeError: an id that the table does not hold
        """
        ids = self._columns(torch.as_tensor(tokens)).long()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ShapeError(
                f"tokens lie in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        one = self.tables.ndim == 1
        values = self.tables[ids] if one else self.tables.gather(1, ids.T).T
        for function in reversed(self.back):
            values = function(values)
        return values

    def _columns(self, values: Tensor) -> Tensor:
        if self.tables.ndim == 2 and (values.ndim != 2 or values.shape[1] != len(self.tables)):
            raise ShapeError(
                f"expected {len(self.tables)} numbers an item, [B, {len(self.tables)}], got "
                f"{list(values.shape)}"
            )
        return values


def functions(names: Sequence[str]) -> tuple[Function, ...]:
    """The functions that a config names.

    Raises:
        ConfigError: one that is not known here
    """
    for name in names:
        if name not in FUNCTIONS:
            raise ConfigError(
                f"a codec's functions are of {sorted(FUNCTIONS)}, got '{name}'."
                f"{suggest(str(name), FUNCTIONS)}"
            )
    return tuple(FUNCTIONS[name] for name in names)


def read_scalar(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ScalarCodec:
    """A codec of one number: a table of quantiles, perhaps of logarithms, or a fixed grid."""
    table = _table(weights, "")
    if "min_log_value" in config:
        least = math.exp(float(config["min_log_value"]))
        return ScalarCodec(table, (torch.log,), (torch.exp,), least)
    return ScalarCodec(table)


def read_scalars(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ScalarCodec:
    """A codec of several numbers, each with its table."""
    count = int(config["num_quantizers"])
    tables = torch.stack([_table(weights, f"quantizers.{i}.") for i in range(count)])
    forward, back = (functions(config[f"{side}compression_fns"]) for side in ("", "de"))
    return ScalarCodec(tables, forward, back)


def table_of(weights: Mapping[str, Tensor], place: str) -> Tensor:
    """One table, whatever its quantizer is called."""
    return _table(weights, place)


def _table(weights: Mapping[str, Tensor], place: str) -> Tensor:
    # the package renames `quantizer.` to `_quantizer.`; files of both kinds are about
    for quantizer in ("_quantizer.", "quantizer."):
        for name in ("_index_to_val", "buckets"):
            found = weights.get(f"{quantizer}{place}{name}")
            if found is not None:
                return found.float()
    raise CheckpointError(
        f"the codec lacks a table of values for '{place}'; it has {sorted(weights)}"
    )
