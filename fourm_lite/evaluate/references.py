"""What photos are in every kind of value: the answers that generated values are measured by.

A photo's captions are people's; class maps, vectors and feature maps are what teachers say of it
(pseudo-labels, with their errors); edges, palette and numbers are computed. All are of the photo's
centred square, as the model reads it. A kind of value is called by its role, whatever its model
calls it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.data.labellers import (
    METADATA,
    Cuts,
    EdgeLabeller,
    GivenMaps,
    Labeller,
    MetadataLabeller,
    PaletteLabeller,
    SegmentationTeacher,
    unpack_edges,
)
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import ConfigError, ReadError
from fourm_lite.modalities.crops import cut_image
from fourm_lite.modalities.spec import Crop, Modality
from fourm_lite.photos.records import Record
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import batches
from fourm_lite.reading.arrays import open_npz

NUMBERS = tuple(name for name in METADATA if not name.startswith("original_"))
"""Numbers of a photo that a crop has too: not the size of its file."""
_NAMED = {"caption": "caption", "color_palette": "palette", "metadata": "numbers"}


def role_of(entry: Modality, pipe: FourMPipeline) -> str | None:
    """What kind of value a modality holds; None for those that nothing here can judge."""
    if entry.kind == "pixels":
        return "pixels" if entry.channels == 3 else None
    if entry.kind == "sequence":
        return _NAMED.get(entry.stem) or _NAMED.get(entry.text_format)
    if entry.kind != "grid" or not pipe.tokenizers.has(entry):
        return None
    config = pipe.tokenizers.vq(entry).config
    if config.n_labels is not None:
        return "segmentation"
    if config.n_channels in (1, 3):
        return "edges" if config.n_channels == 1 else "rgb"
    return "embedding" if config.num_codebooks > 1 else "features"


def roles(entries: Sequence[Modality], pipe: FourMPipeline) -> dict[str, Modality]:
    """Role -> the first modality of that role."""
    found: dict[str, Modality] = {}
    for entry in entries:
        role = role_of(entry, pipe)
        if role is not None:
            found.setdefault(role, entry)
    return found


@dataclass(frozen=True)
class Teachers:
    """Who says what a photo is, where no formula does; roles without a teacher are left out.

    Args:
        networks: give the embedding and the feature map: the first whose vectors are as wide as
            those that the modality's tokenizer reads; one alone gives both
        segmentation: an ONNX network of class maps, or an .npz of `ids` and `semseg`
    """

    networks: Sequence[NetworkEmbedder] = ()
    segmentation: Path | None = None

    def of(self, width: int) -> NetworkEmbedder:
        """The network of an embedding or a feature map of so many channels."""
        fitting = [network for network in self.networks if network.dim == width]
        return (*fitting, *self.networks)[0]

    def class_maps(self, size: int) -> Labeller | None:
        """What makes class maps int[B, 1, size, size].

        Raises:
            ConfigError: the file is of neither form
        """
        if self.segmentation is None:
            return None
        if self.segmentation.suffix == ".onnx":
            return SegmentationTeacher(self.segmentation, map_size=size)
        if self.segmentation.suffix != ".npz":
            raise ConfigError(f"class maps come from .onnx or .npz, got {self.segmentation}")
        return GivenMaps(_read_maps(self.segmentation), size)


def _read_maps(path: Path) -> dict[str, Any]:
    """The class maps of an .npz file by id."""
    wanted = "class maps are an .npz file with `ids` and as many `semseg`"
    try:
        with open_npz(path) as file:
            ids, maps = file.rows("ids", "semseg")
            return {str(i): m for i, m in zip(ids, maps, strict=True)}
    except ReadError as error:
        raise ConfigError(f"{wanted}, {path} is none: {error}") from error


@dataclass(frozen=True)
class References:
    """Photos in every role, a row a photo.

    Shapes:
        caption, palette: N tuples; pixels, rgb: uint8[N, S, S, 3]; segmentation: int64[N, h, w]
        edges: bool[N, S, S]; embedding: float32[N, E]; features: float32[N, C, h, w]
        numbers: float32[N, F], in the order of NUMBERS
    """

    values: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.values["pixels"])

    def item(self, row: int, sources: Sequence[str], pipe: FourMPipeline) -> dict[str, Any]:
        """One photo as what is given to the model: modality -> value."""
        entries = roles(pipe.model.config.inputs, pipe)
        return {
            entries[role].name: _given(role, self.values[role][row], entries[role], pipe)
            for role in sources
        }

    def join(self, other: References) -> References:
        """These photos, then those."""
        return References(
            {
                role: [*mine, *other.values[role]]
                if isinstance(mine, list)
                else np.concatenate([mine, other.values[role]])
                for role, mine in self.values.items()
            }
        )


def _given(role: str, value: Any, entry: Modality, pipe: FourMPipeline) -> Any:
    if role == "caption":
        tokenizer = pipe.tokenizers.text()
        return [*tokenizer.encode(value[0])[: entry.max_tokens - 1], tokenizer.eos]
    if role == "edges":
        return torch.from_numpy(2.0 * value[None].astype(np.float32) - 1)
    if role in ("pixels", "rgb"):
        return value
    found: Tensor = torch.from_numpy(np.ascontiguousarray(value))
    return found


def read_references(
    photos: Sequence[Record], pipe: FourMPipeline, teachers: Teachers, *, batch_size: int = 32
) -> References:
    """Photos in every role that has a teacher or a formula.

    Raises:
        FourMError: a photo cannot be read, or a teacher does not fit the model
    """
    entries = roles((*pipe.model.config.outputs, *pipe.model.config.inputs), pipe)
    parts = [_read(part, entries, pipe, teachers) for part in batches(photos, batch_size)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part)
    return joined


def _read(
    photos: Sequence[Record],
    entries: Mapping[str, Modality],
    pipe: FourMPipeline,
    teachers: Teachers,
) -> References:
    cuts = _cuts(photos, entries["pixels"].image_size or pipe.model.config.image_size)
    pixels = cuts.pixels[:, 0]
    values: dict[str, Any] = {"pixels": pixels, "caption": [r.captions for r in photos]}
    if "rgb" in entries:
        values["rgb"] = pixels
    if "edges" in entries:
        values["edges"] = unpack_edges(EdgeLabeller()(cuts)["canny_edge"])[:, 0]
    if "palette" in entries:
        colors = PaletteLabeller()(cuts)["color_palette"][:, 0]
        values["palette"] = [tuple(map(tuple, p[p[:, 0] >= 0].tolist())) for p in colors]
    if "numbers" in entries:
        table = MetadataLabeller()(cuts)["metadata"][:, 0]
        values["numbers"] = table[:, [METADATA.index(name) for name in NUMBERS]]
    return References(values | _taught(cuts, entries, pipe, teachers))


def _taught(
    cuts: Cuts, entries: Mapping[str, Modality], pipe: FourMPipeline, teachers: Teachers
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "segmentation" in entries:
        size = pipe.tokenizers.vq(entries["segmentation"]).config.image_size
        labeller = teachers.class_maps(size if isinstance(size, int) else size[0])
        if labeller is not None:
            values["segmentation"] = labeller(cuts)[labeller.names[0]][:, 0].astype(np.int64)
    if not teachers.networks:
        return values
    from PIL import Image

    pictures = [Image.fromarray(p) for p in cuts.pixels[:, 0]]
    widths = {
        role: pipe.tokenizers.vq(entries[role]).config.n_channels
        for role in ("embedding", "features")
        if role in entries
    }
    networks = {role: teachers.of(width) for role, width in widths.items()}
    if "embedding" in networks:
        values["embedding"] = networks["embedding"].embed_image(pictures, normalize=False)
    if "features" in networks and networks["features"].towers.patches is not None:
        rows = networks["features"].embed_patches(pictures)
        side = round(rows.shape[1] ** 0.5)
        values["features"] = rows.transpose(0, 2, 1).reshape(len(rows), -1, side, side)
    return values


def _cuts(photos: Sequence[Record], size: int) -> Cuts:
    crops, sizes, pixels = [], [], []
    for photo in photos:
        image = photo.open_image()
        crop = dataclasses.replace(Crop.center(image.height, image.width), size=size)
        crops.append([crop])
        sizes.append((image.height, image.width))
        pixels.append(np.asarray(cut_image(image, crop))[None])
    return Cuts(photos, crops, sizes, np.stack(pixels))
