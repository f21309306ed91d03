"""All codecs under one name, `codecs.ImageCodec()` and so on, and which one a modality has.

A modality that names no codec of its own gets the one of its stem in 4M, else the one of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fourm_lite.modalities.array_codecs import FeatureCodec, RasterCodec, TokenCodec
from fourm_lite.modalities.class_maps import COCO_PANOPTIC, LabelCodec, class_colors
from fourm_lite.modalities.forks import BANDS, STATISTICS
from fourm_lite.modalities.legend import Explains, Key
from fourm_lite.modalities.pictures import open_picture, picture_size
from fourm_lite.modalities.pixel_codecs import (
    NORMALIZATIONS,
    DepthCodec,
    ImageCodec,
    MaskCodec,
    NormalCodec,
    denormalize,
    normalize,
    standardize_depth,
)
from fourm_lite.modalities.spec import Codec, Crop, Modality
from fourm_lite.modalities.value_codecs import (
    BoxCodec,
    MetadataCodec,
    PaletteCodec,
    PoseCodec,
    SamCodec,
    TextCodec,
)

# What 4M stores under each name, beyond what the kind says.
_OF_STEM: dict[str, Codec] = {
    "det": BoxCodec(),
    "metadata": MetadataCodec(),
    "human_poses": PoseCodec(),
    "color_palette": PaletteCodec(),
    "sam_instance": SamCodec(),
    "depth": DepthCodec(),
    "normal": NormalCodec(),
    "semseg_coco": LabelCodec(num_labels=134, names=COCO_PANOPTIC),
    "sam_mask": MaskCodec(),
}


def _raw_codec(modality: Modality) -> Codec:
    if modality.num_labels is not None:
        return LabelCodec(num_labels=modality.num_labels)
    if modality.channels in (1, 3):
        return ImageCodec(channels=modality.channels)
    return FeatureCodec(channels=modality.channels)


def tile_codec(modality: Modality) -> RasterCodec | None:
    """How tiles of the earth become the pixels of a modality, or what its tokenizer reads."""
    own, usual = (STATISTICS.get(edition, {}) for edition in (modality.edition, "v1"))
    held = own.get(modality.name) or usual.get(modality.name)
    if held is None:
        return None
    bands = BANDS.get(modality.name) or BANDS.get(f"un{modality.name}", ())
    return RasterCodec(mean=held.mean, std=held.std, bands=bands)


def _pixel_codec(modality: Modality) -> Codec:
    if (tiles := tile_codec(modality)) is not None:
        return tiles
    # The model reads ImageNet-standardised colours; the tokenizers read -1..1.
    if modality.channels == 3:
        return ImageCodec(normalization="imagenet")
    return ImageCodec(channels=modality.channels or 1)


_OF_KIND: dict[str, Callable[[Modality], Codec]] = {
    "pixels": _pixel_codec,
    "grid": lambda modality: TokenCodec(vocab_size=modality.vocab_size),
    "sequence": lambda modality: TextCodec(),
    "features": lambda modality: FeatureCodec(channels=modality.channels),
    "raw": _raw_codec,
}


def codec_of(modality: Modality) -> Codec:
    """How files of a modality are read and written, and its values shown."""
    return modality.codec or _OF_STEM.get(modality.stem) or _OF_KIND[modality.kind](modality)


def legend_of(codec: Codec, value: Any) -> tuple[Key, ...]:
    """What explains a codec's picture of a value; nothing where that speaks for itself."""
    return codec.legend(value) if isinstance(codec, Explains) else ()


__all__ = [
    "NORMALIZATIONS",
    "BoxCodec",
    "Codec",
    "Crop",
    "DepthCodec",
    "FeatureCodec",
    "ImageCodec",
    "Key",
    "LabelCodec",
    "MaskCodec",
    "MetadataCodec",
    "NormalCodec",
    "PaletteCodec",
    "PoseCodec",
    "RasterCodec",
    "SamCodec",
    "TextCodec",
    "TokenCodec",
    "class_colors",
    "codec_of",
    "denormalize",
    "legend_of",
    "normalize",
    "open_picture",
    "picture_size",
    "standardize_depth",
    "tile_codec",
]
