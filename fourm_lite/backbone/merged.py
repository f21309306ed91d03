"""The encoder as a backbone of several modalities: the output of every block, merged.

What TerraMind's users take from it: a dictionary of pictures of one place goes in, under their own
names and in their order; per block comes out one map of tokens, the mean over the modalities, their
maximum, side by side, one a modality, or all in a row. Only the last output passes the norm.
Pixels must be standardised before (`modalities.forks.STATISTICS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.modalities.forks import BANDS, key_of, pixels
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.embeddings import PixelEncoder
from fourm_lite.model.load import square
from fourm_lite.nn.posemb import resize_table, sincos_2d

Merge = Literal["mean", "max", "concat", "dict", "none"]
Output = Tensor | dict[str, Tensor]
Name = str | int
"""A modality of the model, or the channels of a new one."""
Names = Sequence[str | Mapping[str, Name]] | Mapping[str, Name]


class MergedViT(nn.Module):
    """An encoder over any subset of its modalities.

    Args:
        vit: has the weights
        names: what users call each modality, and its name in the model
        merge: how the modalities of one block's output become one; sequences such as coordinates
            are read and left out, but with "dict" and "none"
    """

    def __init__(self, vit: FMViT, names: Mapping[str, str], merge: Merge = "mean") -> None:
        super().__init__()
        check_choice("merge", merge, of=get_args(Merge))
        self.vit, self.names, self.merge = vit, dict(names), merge
        self.missing_mod_token: nn.Parameter | None = None
        if merge == "concat":
            self.missing_mod_token = nn.Parameter(torch.zeros(vit.num_features))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        modalities: Names,
        *,
        merge: Merge = "mean",
        bands: Mapping[str, Sequence[str]] | None = None,
        image_size: int | None = None,
    ) -> MergedViT:
        """The backbone of a checkpoint.

        Args:
            source: a folder, file or hub id; TerraMind's `.pt` after `fourm-lite convert`
            modalities: what is read: "S2L2A", "S1GRD", "DEM", ...; {"PLANET": 4} is a new modality
                of pixels with so many channels, whose patches have random weights (torch's
                generator draws them), to be trained
            merge: see the class
            bands: which bands each of them has, where it has not all: their weights are kept
            image_size: builds positions for this size in place of interpolating those of 224
        Raises:
            UnknownNameError: a modality that the model does not have
            ConfigError: an unknown band, or a way of merging that is not known
        """
        asked = _asked(modalities)
        known = [name for name in asked.values() if isinstance(name, str)]
        vit = FMViT.from_pretrained(source, inputs=known or None, num_classes=0)
        own = vit.config.inputs
        names = {
            name: key if isinstance(key, str) else add_pixels(vit, name, key)
            for name, key in asked.items()
        }
        if not known:  # the encoder alone is wanted
            vit.config = replace(vit.config, inputs=vit.config.inputs[len(own) :])
            for entry in own:
                del vit.encoder_embeddings[entry.name]
        for name, chosen in (bands or {}).items():
            if name not in names:
                raise ConfigError(f"bands are given for {name!r}, which is not read: {list(names)}")
            keep_bands(vit, names[name], chosen)
        if image_size is not None:
            set_positions(vit, image_size)
        return cls(vit, names, merge)

    @property
    def out_channels(self) -> list[int]:
        """Width of the output of each block."""
        images = sum(self._entry(m).kind != "sequence" for m in self.names)
        width = self.vit.num_features * (images if self.merge == "concat" else 1)
        return [width] * len(self.vit.encoder)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> list[Output]:
        """The output of every block, float[B, L, D] (or by name); the argument is unchanged.

        Shapes:
            inputs: by name pixels float[B, C, H, W] or ids int64[B, L] (or [B, h, w]); a bare
                tensor is the first modality
        Raises:
            ConfigError: nothing is given, or a name that is not read
            ShapeError: another number of bands, or modalities of different sizes to be merged
        """
        given = self._given(inputs)
        parts = {name: self._embedded(name, x) for name, x in given.items()}
        x = torch.cat(list(parts.values()), dim=1)
        outputs = []
        for number, block in enumerate(self.vit.encoder, start=1):
            x = block(x)
            shown = self.vit.encoder_norm(x) if number == len(self.vit.encoder) else x
            sizes = [part.shape[1] for part in parts.values()]
            outputs.append(self._merged(dict(zip(parts, shown.split(sizes, dim=1), strict=True))))
        return outputs

    def _given(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if isinstance(inputs, Tensor):
            return {next(iter(self.names)): inputs}
        check_choice("an input of this backbone", *inputs, of=self.names)
        if not inputs:
            raise ConfigError(f"this backbone reads any of {list(self.names)}, got nothing")
        return inputs

    def _entry(self, name: str) -> Modality:
        return next(m for m in self.vit.config.inputs if m.name == self.names[name])

    def _embedded(self, name: str, x: Tensor) -> Tensor:
        """Content, position and modality vector: float[B, L, D]."""
        entry = self._entry(name)
        embedding = self.vit.encoder_embeddings[entry.name]
        if isinstance(embedding, PixelEncoder):
            return self._pixels(name, embedding, x)
        grid = tuple(x.shape[1:]) if x.ndim == 3 else None
        ids = x.flatten(1)
        content: Tensor = embedding.token_emb(ids)  # type: ignore[operator]
        if entry.kind == "sequence":
            table = embedding.pos_emb[:, : ids.shape[1]]  # type: ignore[index]
            if table.shape[1] < ids.shape[1]:
                raise ShapeError(
                    f"'{name}' has at most {table.shape[1]} tokens, got {ids.shape[1]}"
                )
        else:
            rows, columns = grid or square(ids.shape[1], name)
            table = self._table(entry, embedding.pos_emb, (rows, columns))  # type: ignore[arg-type]
        return content + table + embedding.mod_emb  # type: ignore[operator]

    def _pixels(self, name: str, embedding: PixelEncoder, x: Tensor) -> Tensor:
        from fourm_lite.batch import Tokens

        patch, channels = embedding.patch_size, embedding.proj.in_features
        bands = channels // patch**2
        fits = (
            x.ndim == 4 and x.shape[1] == bands and not (x.shape[2] % patch or x.shape[3] % patch)
        )
        if not fits or 0 in x.shape:
            raise ShapeError(
                f"'{name}' is float[B, {bands}, H, W] with H and W multiples of {patch}, got "
                f"{list(x.shape)}; with other bands say which: bands={{{name!r}: [...]}}"
            )
        grid = x.shape[2] // patch, x.shape[3] // patch
        content = embedding.content(Tokens.given(x, length=grid[0] * grid[1]))
        return (
            content + self._table(embedding.modality, embedding.pos_emb, grid) + embedding.mod_emb
        )

    def _table(self, entry: Modality, table: Tensor, grid: tuple[int, int]) -> Tensor:
        side = int(table.shape[1] ** 0.5)
        own = (side, side) if side * side == table.shape[1] else entry.grid or grid
        return resize_table(table, own, grid)

    def _merged(self, parts: dict[str, Tensor]) -> Output:
        if self.merge == "none":
            return torch.cat(list(parts.values()), dim=1)
        if self.merge == "dict":
            return parts
        images = [v for name, v in parts.items() if self._entry(name).kind != "sequence"]
        if len({v.shape[1] for v in images}) != 1:
            raise ShapeError(
                f"modalities are merged token by token and have {[v.shape[1] for v in images]} "
                'tokens; give pictures of one size, or merge="dict"'
            )
        if self.missing_mod_token is None:
            return images[0] if len(images) == 1 else MERGED[self.merge](torch.stack(images))
        lacking = sum(self._entry(m).kind != "sequence" for m in self.names) - len(images)
        absent = self.missing_mod_token.expand_as(images[0])
        return torch.cat([*images, *[absent] * lacking], dim=-1)


MERGED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda stack: stack.mean(dim=0),
    "max": lambda stack: stack.amax(dim=0),
}


def _asked(modalities: Names) -> dict[str, Name]:
    """By the names that users give: modalities of the model, or channels."""
    if isinstance(modalities, Mapping):
        return dict(modalities)
    found: dict[str, Name] = {}
    for one in modalities:
        found |= one if isinstance(one, Mapping) else {one: key_of(one)}
    return found


def add_pixels(vit: FMViT, name: str, channels: int, image_size: int = 224) -> str:
    """Gives a backbone a new modality of pixels with random weights; what it is called there.

    Raises:
        ConfigError: there is one of that name, or no number of channels
    """
    if channels < 1:
        raise ConfigError(f"a new modality has one or more channels, got {name!r}: {channels}")
    entry = pixels(f"{name}@{image_size}", image_size, channels, name)
    if any(entry.name == other.name for other in vit.config.inputs):
        raise ConfigError(f"'{entry.name}' is a modality of this model already")
    embedding = PixelEncoder(entry, vit.num_features)
    embedding.init_weights()
    nn.init.xavier_uniform_(embedding.proj.weight)
    like = next(vit.encoder.parameters())
    vit.encoder_embeddings[entry.name] = embedding.to(like.device, like.dtype)
    vit.config = replace(vit.config, inputs=(*vit.config.inputs, entry))
    return entry.name


def keep_bands(vit: FMViT, name: str, bands: Sequence[str]) -> None:
    """Keeps the weights of some bands of a pixel modality, in the order in which they are given.

    Raises:
        ConfigError: a band that the modality does not have
    """
    known = BANDS.get(name)
    embedding = vit.encoder_embeddings[name]
    if known is None or not isinstance(embedding, PixelEncoder):
        raise ConfigError(f"'{name}' has no bands to choose from; those of {list(BANDS)} are known")
    check_choice(f"a band of '{name}'", *bands, of=known)
    if not bands:
        raise ConfigError(f"choose at least one band of '{name}', out of {list(known)}")
    where = [known.index(band) for band in bands]
    # a patch vector is row, column, channel
    weight = embedding.proj.weight.unflatten(1, (-1, len(known)))[..., where].flatten(1)
    embedding.proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    embedding.proj.weight = nn.Parameter(weight.detach().clone())


def set_positions(vit: FMViT, image_size: int) -> None:
    """Exact sine-cosine positions of another image size for every grid of patches.

    Raises:
        ConfigError: no multiple of the patch
    """
    for entry in vit.config.inputs:
        if entry.kind == "sequence" or entry.patch_size is None:
            continue
        if image_size < 1 or image_size % entry.patch_size:
            raise ConfigError(f"image_size is a multiple of {entry.patch_size}, got {image_size}")
        side = image_size // entry.patch_size
        table = sincos_2d(side, side, vit.num_features)
        embedding = vit.encoder_embeddings[entry.name]
        embedding.pos_emb = table.to(embedding.mod_emb)  # type: ignore[arg-type]
