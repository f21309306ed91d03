"""All codecs under one name: `codecs.ImageCodec()`, `codecs.BoxCodec()` and so on."""

from __future__ import annotations

from fourm_lite.modalities.array_codecs import FeatureCodec, LabelCodec, TokenCodec, class_colors
from fourm_lite.modalities.codec_types import Codec, Crop
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
from fourm_lite.modalities.value_codecs import (
    BoxCodec,
    MetadataCodec,
    PaletteCodec,
    PoseCodec,
    SamCodec,
    TextCodec,
)

__all__ = [
    "NORMALIZATIONS",
    "BoxCodec",
    "Codec",
    "Crop",
    "DepthCodec",
    "FeatureCodec",
    "ImageCodec",
    "LabelCodec",
    "MaskCodec",
    "MetadataCodec",
    "NormalCodec",
    "PaletteCodec",
    "PoseCodec",
    "SamCodec",
    "TextCodec",
    "TokenCodec",
    "class_colors",
    "denormalize",
    "normalize",
    "open_picture",
    "picture_size",
    "standardize_depth",
]
