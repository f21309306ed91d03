"""Preprocessing as the model's own files state it, for each library's dialect.

`from_transformers` reads preprocessor_config.json (or the part of processor_config.json),
`from_timm` a pretrained_cfg, `from_open_clip` a preprocess_cfg. Keys that old files leave out take
the library's defaults, which stand here as tables. Nothing of the libraries is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from fourm_lite.embedders.images import ImagePreprocess, ImageSource, Interpolation, Resize, Size
from fourm_lite.embedders.patched import NaFlexPreprocess, ViltPreprocess
from fourm_lite.errors import ConfigError, suggest

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# What users of each model write by hand; by name in `load_embedder(..., preprocess="mofi")`.
PRESETS: dict[str, ImagePreprocess] = {
    "imagebind": ImagePreprocess(**CLIP),
    "clip": ImagePreprocess(**CLIP, centering="floor", transparency="white"),
    "imagenet": ImagePreprocess(**IMAGENET),
    "unit": ImagePreprocess(),  # values in [0, 1]
    # MOFI's README resizes tensors without antialiasing
    "mofi": ImagePreprocess(**CLIP, engine="plain", interpolation="bilinear"),
}

# Pillow's numbers, as preprocessor_config.json writes them
RESAMPLE: tuple[Interpolation, ...] = (
    "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"
)  # fmt: skip

_COMMON: dict[str, Any] = {
    "resample": 3,
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
}
_CLIP_LIKE: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": CLIP["mean"],
    "image_std": CLIP["std"],
}
_HALF: dict[str, Any] = {"image_mean": HALF["mean"], "image_std": HALF["std"]}
_IMAGENET: dict[str, Any] = {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
# Per image_processor_type: the defaults of keys that a file leaves out
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP_LIKE,
    "ChineseCLIP": _CLIP_LIKE,
    "Bit": _CLIP_LIKE,
    "Siglip": {"size": {"height": 224, "width": 224}, **_HALF},
    "Siglip2": {"resample": 2, "max_num_patches": 256, "patch_size": 16, **_HALF},
    "Blip": {**_CLIP_LIKE, "size": {"height": 384, "width": 384}, "do_center_crop": False},
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, **_HALF},
    "Vilt": {"size": {"shortest_edge": 384}, "size_divisor": 32, **_HALF},
    "DINOv3ViT": {"size": {"height": 224, "width": 224}, "resample": 2, **_IMAGENET},
    "EfficientNet": {
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "rescale_offset": False,
        "include_top": True,
        **_HALF,
    },
}


class Preprocess(Protocol):
    """Pictures to the named inputs of a network."""

    def batch(self, pictures: list[ImageSource]) -> dict[str, Tensor]:
        """The inputs of a batch, by the names of the network's arguments."""


def from_transformers(config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing of a transformers image processor, from its configuration.

    Raises:
        ConfigError: a key is missing, or the processor does something that is not known here
    """
    kind = _processor_kind(config)
    known = {**_COMMON, **DEFAULTS.get(kind, {}), **config}
    if kind == "Siglip2":
        return NaFlexPreprocess(
            patch_size=known["patch_size"],
            max_patches=known["max_num_patches"],
            interpolation=_resample(known),
            **_statistics(known),
        )
    if kind == "Vilt":
        edge = int(_edge(known["size"]))
        return ViltPreprocess(
            shortest=edge,
            divisor=known["size_divisor"],
            interpolation=_resample(known),
            **_statistics(known),
        )
    return _plain_transformers(kind, known)


def _plain_transformers(kind: str, known: Mapping[str, Any]) -> ImagePreprocess:
    resize, size = _transformers_size(kind, known)
    crop = _pair(known.get("crop_size"), "crop_size") if known["do_center_crop"] else None
    statistics = _statistics(known)
    return ImagePreprocess(
        resize=resize,
        size=size,
        crop=crop,
        interpolation=_resample(known),
        scale=float(known["rescale_factor"]) if known["do_rescale"] else 1.0,
        offset=-1.0 if known.get("rescale_offset") else 0.0,
        extra_std=statistics["std"] if known.get("include_top") else None,
        engine="float" if kind.startswith("DINOv3") else "pillow",
        centering="floor",
        transparency="white",
        **statistics,
    )


def from_timm(config: Mapping[str, Any], *, size: int | None = None) -> ImagePreprocess:
    """The evaluation transform of a timm pretrained_cfg, at another input size if given."""
    height, width = (size, size) if size else tuple(config.get("input_size", (3, 224, 224)))[1:]
    ratio = config.get("crop_pct") or 0.875
    scaled = (math.floor(height / ratio), math.floor(width / ratio))
    mode = config.get("crop_mode") or "center"
    mean = tuple(config.get("mean") or IMAGENET["mean"])
    resize: Resize = {"squash": "squash", "border": "contain"}.get(mode, "cover")  # type: ignore[assignment]
    if resize == "cover" and scaled[0] == scaled[1]:
        resize = "shortest"
    red, green, blue = (round(255 * value) for value in mean)
    return ImagePreprocess(
        resize=resize,
        size=scaled,
        crop=(height, width),
        interpolation=config.get("interpolation") or "bicubic",
        mean=mean,
        std=tuple(config.get("std") or IMAGENET["std"]),
        fill=(red, green, blue) if mode == "border" else (0, 0, 0),
    )


def from_open_clip(config: Mapping[str, Any]) -> ImagePreprocess:
    """The evaluation transform of an open_clip preprocess_cfg."""
    size = _pair(config.get("size", 224), "size")
    mode = config.get("resize_mode") or "shortest"
    modes: dict[str, Resize] = {"shortest": "cover", "longest": "contain", "squash": "squash"}
    if mode not in modes:
        raise ConfigError(f"resize_mode is one of {list(modes)}, got '{mode}'")
    fill = int(config.get("fill_color") or 0)
    return ImagePreprocess(
        resize="shortest" if mode == "shortest" and size[0] == size[1] else modes[mode],
        size=size,
        crop=None if mode == "squash" else size,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        mean=_triple(config.get("mean") or CLIP["mean"]),
        std=_triple(config.get("std") or CLIP["std"]),
        fill=(fill, fill, fill),
    )


def preset(name: str, *, size: int | None = None) -> ImagePreprocess:
    """A preprocessing by name, at another size if given."""
    if name not in PRESETS:
        raise ConfigError(
            f"preprocess is one of {sorted(PRESETS)}, got '{name}'.{suggest(name, PRESETS)}"
        )
    found = PRESETS[name]
    if size is None:
        return found
    values = {**vars(found), "size": (size, size), "crop": (size, size)}
    return ImagePreprocess(**values)


def _processor_kind(config: Mapping[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        name = str(name).removesuffix(ending)
    return str(name)


def _transformers_size(kind: str, known: Mapping[str, Any]) -> tuple[Resize, Size]:
    if not known["do_resize"]:
        return "none", (0, 0)
    size = known.get("size")
    if isinstance(size, int):  # files from before 2022: CLIP meant the short edge, others a square
        size = {"shortest_edge": size} if kind in ("CLIP", "ChineseCLIP", "Bit") else size
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = _edge(size)
        return "shortest", (edge, edge)
    return "squash", _pair(size, "size")


def _edge(size: Any) -> int:
    if isinstance(size, int):
        return size
    if "longest_edge" in size or "shortest_edge" not in size:
        raise ConfigError(
            f"'size' with {sorted(size)} is not known here; expected shortest_edge, or height and "
            f"width. Pass preprocess=ImagePreprocess(...) yourself"
        )
    return int(size["shortest_edge"])


def _pair(size: Any, key: str) -> Size:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, tuple | list) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ConfigError(
        f"'{key}' of the preprocessing must be a number, a pair or height and width, got {size!r}"
    )


def _resample(known: Mapping[str, Any]) -> Interpolation:
    number = known["resample"]
    if not isinstance(number, int) or not 0 <= number < len(RESAMPLE):
        raise ConfigError(f"'resample' must be Pillow's number 0..5, got {number!r}")
    return RESAMPLE[number]


def _statistics(known: Mapping[str, Any]) -> dict[str, Any]:
    if not known["do_normalize"]:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    missing = [key for key in ("image_mean", "image_std") if known.get(key) is None]
    if missing:
        raise ConfigError(
            f"the preprocessing file lacks {missing} and its image_processor_type "
            f"'{known.get('image_processor_type')}' has no defaults here; add them to the file"
        )
    return {"mean": _triple(known["image_mean"]), "std": _triple(known["image_std"])}


def _triple(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
