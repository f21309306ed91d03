"""Numbers by a table of values: a token is the first entry that is not below the number.

So codes round up, never to the nearest; NaN and what lies above the table take the last entry.

Objects of a sky catalog are five such tokens each: position, shape and radius. The package's own
encoder forgets that the transformer keeps 204 ids for other things, and leaves 9999 where there is
no object. `tokenize` gives what the transformer reads; `codes` what the package gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import CheckpointError, ShapeError, check_choice
from fourm_lite.modalities.forks import CATALOG_END, CATALOG_OFFSET, CATALOG_PAD
from fourm_lite.modalities.spec import SEQUENCE_ROWS

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
    check_choice("a codec's function", *names, of=FUNCTIONS)
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


FIELDS = ("X", "Y", "SHAPE_E1", "SHAPE_E2", "SHAPE_R")
SIDE = 96
NOTHING = -1


@dataclass(frozen=True)
class Catalog:
    """Objects: pixels int[B, N] and shapes float[B, N]; SHAPE_R is 9999 where there is none."""

    X: Tensor
    Y: Tensor
    SHAPE_E1: Tensor
    SHAPE_E2: Tensor
    SHAPE_R: Tensor


@dataclass(frozen=True)
class CatalogCodec:
    """Objects to tokens and back; pixels are themselves, shapes go by tables."""

    shapes: Mapping[str, ScalarCodec]
    absent: int = 9999

    @property
    def vocab_size(self) -> int:
        """How many codes there are, without the transformer's own ids."""
        return sum(self._sizes())

    def codes(self, raw: Catalog) -> Tensor:
        """Codec ids int64[B, 5 N], object after object; `absent` where there is none.

        Raises:
            ShapeError: fields of different shapes, or pixels outside of the image
        """
        fields = [torch.as_tensor(getattr(raw, name)) for name in FIELDS]
        if len({tuple(f.shape) for f in fields}) > 1 or fields[0].ndim != 2:
            raise ShapeError(
                f"a catalog's fields are all [B, N], got {[list(f.shape) for f in fields]}"
            )
        there = fields[-1] != self.absent
        ids = []
        for name, values in zip(FIELDS, fields, strict=True):
            codes = self.shapes[name].tokenize(values) if name in self.shapes else values.long()
            if name not in self.shapes and bool(((codes < 0) | (codes >= SIDE))[there].any()):
                raise ShapeError(f"{name} of an object lies in 0..{SIDE - 1}, some do not")
            ids.append(codes)
        offsets = torch.tensor(self._offsets())
        found = torch.where(there[..., None], torch.stack(ids, -1) + offsets, self.absent)
        return rearrange(found, "b n f -> b (n f)")

    def tokenize(self, raw: Catalog) -> Tensor:
        """What the transformer reads, int64[B, L]: objects, an end, then padding.

        Raises:
            ShapeError: more objects than it has positions for
        """
        codes = self.codes(raw)
        most = int((codes != self.absent).sum(1).max()) if codes.numel() else 0
        if most + 1 > SEQUENCE_ROWS:
            raise ShapeError(
                f"the transformer has {SEQUENCE_ROWS} positions, room for "
                f"{(SEQUENCE_ROWS - 1) // 5} objects; the catalog has {most // 5}; keep the "
                "brightest"
            )
        rows = torch.full((len(codes), most + 1), CATALOG_PAD)
        for row, ids in zip(rows, codes, strict=True):
            kept = ids[ids != self.absent] + CATALOG_OFFSET
            row[: len(kept) + 1] = torch.cat([kept, torch.tensor([CATALOG_END])])
        return rows

    def detokenize(self, tokens: Tensor, **options: Any) -> Catalog:
        """The objects of what the transformer predicted, padded with -1."""
        rows = [ids[ids >= CATALOG_OFFSET] - CATALOG_OFFSET for ids in torch.as_tensor(tokens)]
        longest = max((len(r) for r in rows), default=0)
        length = -(-longest // 5) * 5
        codes = torch.full((len(rows), length), self.absent)
        for row, ids in zip(codes, rows, strict=True):
            row[: len(ids)] = ids
        return self.objects(codes)

    def objects(self, codes: Tensor) -> Catalog:
        """Objects of codec ids int64[B, 5 N]; -1 for anything outside of its field.

        Raises:
            ShapeError: no whole number of objects
        """
        if codes.ndim != 2 or codes.shape[1] % len(FIELDS):
            raise ShapeError(f"codes are [B, 5 N], five an object, got {list(codes.shape)}")
        by_field = rearrange(codes.long(), "b (n f) -> f b n", f=len(FIELDS))
        values = {}
        for name, ids, size, offset in zip(
            FIELDS, by_field, self._sizes(), self._offsets(), strict=True
        ):
            own = ids - offset
            inside = (own >= 0) & (own < size)
            kept = own.clamp(0, size - 1)
            found = self.shapes[name].detokenize(kept) if name in self.shapes else kept
            values[name] = torch.where(inside, found, NOTHING)
        return Catalog(**values)

    def _sizes(self) -> list[int]:
        return [self.shapes[n].vocab_size if n in self.shapes else SIDE for n in FIELDS]

    def _offsets(self) -> list[int]:
        sizes = self._sizes()
        return [sum(sizes[:i]) for i in range(len(sizes))]


def read_catalog(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> CatalogCodec:
    """The codec of a folder."""
    shapes = {
        name: ScalarCodec(_table(weights, f"quantizers.{name}."))
        for name in FIELDS
        if name.startswith("SHAPE")
    }
    return CatalogCodec(shapes, int(config["mask_value"]))
