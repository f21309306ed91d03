"""How earlier versions wrote a network's preprocessing, so that what they stored is recognised.

A space's fingerprint hashes the text of the preprocessing. Until 0.1 one class of ours read the
files of all libraries, today their own transforms do: the text is another, the pixels are equal.
`former_texts` gives the text of then, and only where its pixels are today's; a network that was
fed otherwise (unknown kinds, ignored keys) has none, as its vectors cannot be continued.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourm_lite.embedders.image_configs import (
    CLIP,
    IMAGENET,
    TransformersPreprocess,
    TransformPreprocess,
)
from fourm_lite.embedders.image_transforms import ImagePreprocess, Size

HALF: dict[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
SQUARE: dict[str, Any] = {"size": {"height": 224, "width": 224}}
COMMON: dict[str, Any] = {
    "resample": 3, "rescale_factor": 1 / 255, "do_resize": True, "do_rescale": True,
    "do_normalize": True, "do_center_crop": False,
}  # fmt: skip
CLIP_LIKE: dict[str, Any] = {
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True,
    "image_mean": CLIP["mean"], "image_std": CLIP["std"],
}  # fmt: skip
# What a kind of transformers took for keys that its file leaves out
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": CLIP_LIKE,
    "ChineseCLIP": CLIP_LIKE,
    "Bit": CLIP_LIKE,
    "Siglip": SQUARE | HALF,
    "Siglip2": {"resample": 2, "max_num_patches": 256, "patch_size": 16, **HALF},
    "Blip": {**CLIP_LIKE, "size": {"height": 384, "width": 384}, "do_center_crop": False},
    "ViT": {**SQUARE, "resample": 2, **HALF},
    "DINOv3ViT": {
        **SQUARE, "resample": 2, "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"],
    },
    "EfficientNet": {
        "size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289},
        "rescale_offset": False, "include_top": True, **HALF,
    },
}  # fmt: skip
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
TOLERANCE = 1e-5
"""Of pixels after normalising; another rounding of one level would be 0.01."""


@dataclass(frozen=True, kw_only=True)
class FormerImagePreprocess:
    """The fields of then, in their order."""

    resize: str
    size: Size
    interpolation: str
    crop: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    offset: float = 0.0
    extra_std: tuple[float, ...] | None = None
    engine: str = "pillow"
    centering: str = "round"
    fill: tuple[int, int, int] = (0, 0, 0)
    transparency: Literal["drop", "white"] = "drop"

    @property
    def text(self) -> str:
        """What was hashed."""
        return repr(self).removeprefix("Former")

    def today(self) -> ImagePreprocess:
        """The same pixels by today's class: the offset and the second division are folded."""
        again = self.extra_std or (1.0,) * len(self.std)
        values: dict[str, Any] = {
            "mean": tuple(m - self.offset for m in self.mean),
            "std": tuple(s * a for s, a in zip(self.std, again, strict=True)),
        }
        plain = ("resize", "size", "interpolation", "crop", "scale", "engine", "centering")
        return ImagePreprocess(**{n: getattr(self, n) for n in plain}, **values)


@dataclass(frozen=True, kw_only=True)
class FormerNaFlexPreprocess:
    """That of SigLIP 2, which had a class of its own."""

    patch_size: int
    max_patches: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def text(self) -> str:
        """What was hashed."""
        return repr(self).removeprefix("Former")


def former_texts(preprocess: Any) -> tuple[str, ...]:
    """The texts that earlier versions may have hashed for a preprocessing of today.

    Of our own class transparency was a field: it does not count, as the photos of an index and of
    a grown model were laid on white before the network saw them, then as now.
    """
    if isinstance(preprocess, ImagePreprocess):
        both: tuple[Literal["drop", "white"], ...] = ("drop", "white")
        made = (FormerImagePreprocess(**vars(preprocess), transparency=t) for t in both)
        return tuple(one.text for one in made)
    if not isinstance(preprocess, TransformersPreprocess | TransformPreprocess):
        return ()
    read = READERS.get(getattr(preprocess, "library", "transformers"))
    try:
        found = None if read is None else read(preprocess)
        if isinstance(found, FormerImagePreprocess) and not _same_pixels(found, preprocess):
            return ()
    except (KeyError, TypeError, ValueError):  # files that earlier versions refused
        return ()
    return () if found is None else (found.text,)


def _same_pixels(former: FormerImagePreprocess, today: Callable[[Any], Tensor]) -> bool:
    """Whether two pictures, one smaller and one larger than most inputs, become the same."""
    for height, width in ((61, 97), (431, 302)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        before, now = former.today()(noise), today(noise)
        if before.shape != now.shape or not torch.allclose(before, now, rtol=0, atol=TOLERANCE):
            return False
    return True


def _transformers(
    preprocess: TransformersPreprocess,
) -> FormerImagePreprocess | FormerNaFlexPreprocess:
    kind = preprocess.kind
    known = {**COMMON, **DEFAULTS.get(kind, {}), **json.loads(preprocess.settings)}
    statistics: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if known["do_normalize"]:
        statistics = {n: _triple(known[f"image_{n}"]) for n in ("mean", "std")}
    resample = RESAMPLE[known["resample"]]
    if kind == "Siglip2":
        return FormerNaFlexPreprocess(
            patch_size=known["patch_size"], max_patches=known["max_num_patches"],
            interpolation=resample, **statistics,
        )  # fmt: skip
    resize, size = _transformers_size(kind, known)
    return FormerImagePreprocess(
        resize=resize, size=size,
        crop=_pair(known["crop_size"]) if known["do_center_crop"] else None,
        interpolation=resample,
        scale=float(known["rescale_factor"]) if known["do_rescale"] else 1.0,
        offset=-1.0 if known.get("rescale_offset") else 0.0,
        extra_std=statistics["std"] if known.get("include_top") else None,
        engine="float" if kind.startswith("DINOv3") else "pillow",
        centering="floor", transparency="white", **statistics,
    )  # fmt: skip


def _transformers_size(kind: str, known: Mapping[str, Any]) -> tuple[str, Size]:
    if not known["do_resize"]:
        return "none", (0, 0)
    size = known["size"]
    if isinstance(size, int) and kind in ("CLIP", "ChineseCLIP", "Bit"):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return "shortest", (int(size["shortest_edge"]),) * 2
    return "squash", _pair(size)


def _timm(preprocess: TransformPreprocess) -> FormerImagePreprocess | None:
    config = json.loads(preprocess.settings)
    height, width = config["input_size"][1:]
    scaled = tuple(math.floor(edge / config["crop_pct"]) for edge in (height, width))
    resize = "squash" if config["crop_mode"] == "squash" else "cover"
    if config["crop_mode"] == "border":
        return None  # padded, which today's class does not do
    if resize == "cover" and scaled[0] == scaled[1]:
        resize = "shortest"
    return FormerImagePreprocess(
        resize=resize, size=(scaled[0], scaled[1]), crop=(height, width),
        interpolation=config["interpolation"], mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )  # fmt: skip


def _open_clip(preprocess: TransformPreprocess) -> FormerImagePreprocess | None:
    config = json.loads(preprocess.settings)
    size, mode = _pair(config.get("size", 224)), config.get("resize_mode") or "shortest"
    if mode == "longest":
        return None  # padded, which today's class does not do
    fill = int(config.get("fill_color") or 0)
    whole = "shortest" if size[0] == size[1] else "cover"
    return FormerImagePreprocess(
        resize="squash" if mode == "squash" else whole, size=size,
        crop=None if mode == "squash" else size,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        mean=_triple(config.get("mean") or CLIP["mean"]),
        std=_triple(config.get("std") or CLIP["std"]), fill=(fill, fill, fill),
    )  # fmt: skip


READERS: dict[str, Callable[[Any], FormerImagePreprocess | FormerNaFlexPreprocess | None]] = {
    "transformers": _transformers, "timm": _timm, "open_clip": _open_clip,
}  # fmt: skip


def _pair(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    first, second = (size["height"], size["width"]) if isinstance(size, Mapping) else size
    return int(first), int(second)


def _triple(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
