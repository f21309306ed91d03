"""Preprocessing as the model's own files state it, by the code of the library that wrote them.

`from_transformers` reads preprocessor_config.json (or the part of processor_config.json),
`from_timm` a pretrained_cfg, `from_open_clip` a preprocess_cfg. A kind or key that the library does
not know is refused, as its pixels would be others than the network was trained on. The libraries
are imported when one of their files is read; presets need none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fourm_lite.embedders.image_transforms import ImagePreprocess, OneByOne, grey_picture, one_size
from fourm_lite.errors import (
    ConfigError,
    FourMError,
    ShapeError,
    check_choice,
    foreign_errors,
    suggest,
)
from fourm_lite.modalities.pictures import PictureSource, decode
from fourm_lite.modalities.spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD}

# What users of each model write by hand; by name in `load_embedder(..., preprocess="mofi")`.
PRESETS: dict[str, ImagePreprocess] = {
    "imagebind": ImagePreprocess(**CLIP),
    "clip": ImagePreprocess(**CLIP, centering="floor"),
    "imagenet": ImagePreprocess(**IMAGENET),
    "unit": ImagePreprocess(),  # values in [0, 1]
    # MOFI's README resizes tensors without antialiasing
    "mofi": ImagePreprocess(**CLIP, engine="plain", interpolation="bilinear"),
}

# transformers' classes by rising preference for torchvision: "Pil" since 5.0, plain names before
ENDINGS = ("ImageProcessorPil", "ImageProcessor", "ImageProcessorFast")
# Keys that say nothing of pixels
NOTES = frozenset({
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class",
    "auto_map", "_auto_class", "_valid_processor_keys", "_name_or_path", "transformers_version",
    "tokenizer_class", "reduce_labels", "format",
})  # fmt: skip
# Keys of older files under today's names
OLDER_KEYS = {
    "do_flip_channels": ("do_flip_channel_order",),
    "do_resize_and_center_crop": ("do_resize", "do_center_crop"),
}
NO_TRANSFORM = "{} cannot make the transform of this network: {{error}}; pass preprocess=..."
# Read by some classes, although none declares them
UNDECLARED = frozenset({"max_size", "pad_and_return_pixel_mask", "use_square_size"})


class Preprocess(Protocol):
    """Pictures to the named inputs of a network."""

    def batch(self, pictures: list[PictureSource]) -> dict[str, Tensor]:
        """The inputs of a batch, by the names of the network's arguments."""


@dataclass(frozen=True)
class TransformersPreprocess:
    """An image processor of transformers: of its classes for one kind the one on Pillow.

    `settings` is what the file says, as JSON; a space's fingerprint knows kind and settings.
    """

    kind: str
    settings: str
    processor: Any = field(repr=False, compare=False)

    @property
    def main_input(self) -> str:
        """The name of the pictures themselves among the inputs."""
        return str(self.processor.model_input_names[0])

    def __call__(self, picture: PictureSource) -> Tensor:
        """The network's pixels for one picture: mostly float32[3, H, W]."""
        return self._inputs([picture])["pixel_values"][0]

    def batch(self, pictures: Sequence[PictureSource]) -> dict[str, Tensor]:
        """The named inputs of a batch; pictures of unlike sizes are padded where the kind does so.

        Raises:
            ShapeError: the pictures end up with different sizes, or not with one input each
            FourMError: transformers cannot prepare them
        """
        found = self._inputs(pictures)
        lengths = {name: len(value) for name, value in found.items()}
        if set(lengths.values()) != {len(pictures)}:
            raise ShapeError(
                f"a '{self.kind}' processor makes {lengths} inputs of {len(pictures)} picture(s), "
                "an embedder needs one a picture; choose a network for single pictures"
            )
        return found

    def _inputs(self, pictures: Sequence[PictureSource]) -> dict[str, Tensor]:
        images = [decode(picture) for picture in pictures]
        try:
            found = self.processor(images=images, return_tensors="pt")
        except Exception as error:  # whatever its code raises: ValueError, ImportError, ...
            if "Unable to" in str(error) and len(images) > 1:
                raise one_size(image.size[::-1] for image in images) from error
            raise FourMError(
                f"transformers' '{self.kind}' image processor cannot prepare a picture: "
                f"{type(error).__name__}: {error}. Pass preprocess=ImagePreprocess(...), or choose "
                "a network for single pictures"
            ) from error
        named = {"pixel_values": found} if isinstance(found, Tensor) else found  # Idefics
        tensors = {n: v for n, v in named.items() if isinstance(v, Tensor) and v.ndim}
        return {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}


@dataclass(frozen=True)
class TransformPreprocess(OneByOne):
    """A transform of timm or open_clip, which takes a PIL picture and gives float32[3, H, W]."""

    library: str
    settings: str
    transform: Callable[[Any], Tensor] = field(repr=False, compare=False)

    def __call__(self, picture: PictureSource) -> Tensor:
        """The network's input for one picture, float32[3, H, W]."""
        return self.transform(decode(picture))


def by_size(
    prepare: Preprocess, pictures: Sequence[PictureSource]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The inputs of pictures that end up with one size, with their places in the batch.

    Each is prepared alone, so that no picture's padding depends on its neighbours.
    """
    prepared = [prepare.batch([picture]) for picture in pictures]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, inputs in enumerate(prepared):
        groups.setdefault(tuple((n, v.shape) for n, v in inputs.items()), []).append(place)
    for places in groups.values():
        names = prepared[places[0]]
        yield places, {name: torch.cat([prepared[p][name] for p in places]) for name in names}


def pixels_of(prepare: Preprocess, pictures: Sequence[PictureSource]) -> Tensor:
    """Pixels float32[B, 3, H, W] for networks that take nothing else.

    Raises:
        ConfigError: this preprocessing gives something else
    """
    found = prepare.batch(list(pictures))
    pixels = found.get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        raise ConfigError(
            f"this network takes pixels [B, 3, H, W] alone, its preprocessing gives "
            f"{ ({name: list(value.shape) for name, value in found.items()}) }; pass preprocess=..."
        )
    return pixels


def from_transformers(
    config: Mapping[str, Any], *, model_type: str | None = None
) -> TransformersPreprocess:
    """The preprocessing of a transformers image processor, from its configuration.

    `model_type` is that of the network's own config.json, which tells the kind where the file does
    not.

    Raises:
        ConfigError: the kind is not known, or a key is not known to this kind
    """
    kind = _kind(config, model_type)
    processor_class = _processor_class(kind)
    given = {k: value for key, value in config.items() for k in OLDER_KEYS.get(key, (key,))}
    settings = {k: v for k, v in given.items() if k not in NOTES and v is not None}
    known = _known_keys(processor_class)
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"a '{kind}' image processor has no key '{key}'.{suggest(key, known)} Remove it "
                "from the preprocessing file if it means nothing, or pass preprocess=..."
            )
    told = f"transformers cannot make a '{kind}' image processor of {settings}: {{error}}"
    with foreign_errors(ConfigError, told):  # its own checks, or a library that it needs
        processor = processor_class.from_dict(dict(settings))
    if getattr(processor, "apply_ocr", False):
        processor.apply_ocr = False  # words are not read here, and pixels do not depend on them
    prepare = TransformersPreprocess(kind, json.dumps(settings, sort_keys=True), processor)
    prepare.batch([grey_picture()])  # kinds that need more than a picture fail here, not later
    return prepare


def from_timm(config: Mapping[str, Any], *, size: int | None = None) -> TransformPreprocess:
    """Timm's evaluation transform of a pretrained_cfg, at another input size if given.

    Raises:
        ConfigError: the network does not read three channels, or timm cannot make its transform
    """
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    data = resolve_data_config({}, pretrained_cfg=dict(config))
    if size is not None:
        data["input_size"] = (3, size, size)
    if data["input_size"][0] != 3:
        raise ConfigError(f"expected a network of 3 channels, it reads {data['input_size'][0]}")
    with foreign_errors(ConfigError, NO_TRANSFORM.format("timm")):
        transform = create_transform(**data, is_training=False)
    return TransformPreprocess("timm", json.dumps(data, sort_keys=True), transform)


def from_open_clip(config: Mapping[str, Any]) -> TransformPreprocess:
    """open_clip's evaluation transform of a preprocess_cfg.

    Raises:
        ConfigError: open_clip does not know a key or value
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = {k: v for k, v in config.items() if v is not None}
    with foreign_errors(ConfigError, NO_TRANSFORM.format("open_clip")):
        transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    return TransformPreprocess("open_clip", json.dumps(settings, sort_keys=True), transform)


def preset(name: str, *, size: int | None = None) -> ImagePreprocess:
    """A preprocessing by name, at another size if given."""
    check_choice("preprocess", name, of=sorted(PRESETS))
    found = PRESETS[name]
    if size is None:
        return found
    values = {**vars(found), "size": (size, size), "crop": (size, size)}
    return ImagePreprocess(**values)


def _kind(config: Mapping[str, Any], model_type: str | None) -> str:
    """The kind of processor, such as "CLIP"; the file's own, else that of its network."""
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    if "AutoImageProcessor" in str(config.get("auto_map")):
        raise ConfigError(
            f"the image processor '{named}' is code from the Hub, which is never run here; pass "
            "preprocess='imagenet', 'clip' or an ImagePreprocess(...) that does the same"
        )
    if not named and model_type is not None:
        from transformers.models.auto import image_processing_auto as auto

        table = dict(auto.IMAGE_PROCESSOR_MAPPING_NAMES)  # type: ignore[attr-defined]
        classes: Any = table.get(str(model_type)) or ()
        values = classes.values() if isinstance(classes, Mapping) else classes
        named = next(iter([v for v in values if v]), None)
    if not named:
        raise ConfigError(
            "the preprocessing file names no image_processor_type, and so leaves open how a "
            'picture is resized; add it, such as "CLIPImageProcessor", or pass preprocess=...'
        )
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        named = str(named).removesuffix(ending)
    return str(named)


def _processor_class(kind: str) -> Any:
    import transformers
    from transformers.image_processing_utils import BaseImageProcessor

    for ending in ENDINGS:
        try:
            found = getattr(transformers, kind + ending, None)
        except Exception as error:  # a torchvision that cannot be imported, for one
            raise ConfigError(f"transformers cannot import '{kind}{ending}': {error}") from error
        if isinstance(found, type) and kind not in ("", "Base", "Auto"):
            if issubclass(found, BaseImageProcessor):
                return found
            raise _missing_library(kind, found)
    names = [n for n in dir(transformers) if n.endswith("ImageProcessor")]
    raise ConfigError(
        f"transformers {transformers.__version__} has no image processor '{kind}ImageProcessor'."
        f"{suggest(kind + 'ImageProcessor', names)} Pass preprocess='imagenet', 'clip' or an "
        "ImagePreprocess(...) that does the same"
    )


def _missing_library(kind: str, stand_in: Any) -> ConfigError:
    """What is missing: transformers puts a stand-in where a library is not installed."""
    try:
        stand_in()
    except ImportError as error:
        return ConfigError(f"the image processor '{kind}' needs another library: {error}")
    return ConfigError(f"'{kind}' is no image processor of transformers")


def _known_keys(processor_class: Any) -> set[str]:
    """What files of a class may say: what it declares, what it takes, and what it writes itself."""
    import inspect

    declared = getattr(getattr(processor_class, "valid_kwargs", None), "__annotations__", {})
    named = inspect.signature(processor_class.__init__).parameters
    own = {name for name in dir(processor_class) if not name.startswith("_")}
    values = {name for name in own if not callable(getattr(processor_class, name, None))}
    with contextlib.suppress(Exception):  # a class that cannot be made of its defaults alone
        values |= set(processor_class().to_dict())
    return ({*declared, *named} - {"self", "kwargs", "args"}) | UNDECLARED | values
