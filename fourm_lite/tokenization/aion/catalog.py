"""Objects of a sky catalog to tokens: five for each, position, shape and radius.

The package's own encoder forgets that the transformer keeps 204 ids for other things, and leaves
9999 where there is no object. `tokenize` gives what the transformer reads; `codes` what the package
gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ShapeError
from fourm_lite.modalities.forks import CATALOG_END, CATALOG_OFFSET, CATALOG_PAD
from fourm_lite.tokenization.aion.scalars import ScalarCodec, table_of

FIELDS = ("X", "Y", "SHAPE_E1", "SHAPE_E2", "SHAPE_R")
SIDE = 96
NOTHING = -1
MAX_TOKENS = 512  # of the transformer


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
        if most + 1 > MAX_TOKENS:
            raise ShapeError(
                f"the transformer has {MAX_TOKENS} positions, room for {(MAX_TOKENS - 1) // 5} "
                f"objects; the catalog has {most // 5}; keep the brightest"
            )
        rows = torch.full((len(codes), most + 1), CATALOG_PAD)
        for row, ids in zip(rows, codes, strict=True):
            kept = ids[ids != self.absent] + CATALOG_OFFSET
            row[: len(kept) + 1] = torch.cat([kept, torch.tensor([CATALOG_END])])
        return rows

    def detokenize(self, tokens: Tensor, **options: Any) -> Catalog:
        """The objects of what the transformer said, padded with -1."""
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
        name: ScalarCodec(table_of(weights, f"quantizers.{name}."))
        for name in FIELDS
        if name.startswith("SHAPE")
    }
    return CatalogCodec(shapes, int(config["mask_value"]))
