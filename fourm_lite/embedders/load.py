"""`load_embedder`: one name, function or module in, one embedder out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from fourm_lite.embedders.base import NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.image_configs import Preprocess, pixels_of, preset
from fourm_lite.errors import ConfigError, check_choice, suggest
from fourm_lite.nn.device import usable_device

if TYPE_CHECKING:
    from PIL.Image import Image

Spec = str | Callable[..., Any] | NetworkEmbedder

# family -> module and function; imported when first used, as each may need its library
FAMILIES = {
    "timm": ("timm_networks", "load_timm"),
    "hf": ("hf", "load_hf"),
    "onnx": ("onnx", "load_onnx"),
    "imagebind": ("imagebind", "load_imagebind"),
    "open_clip": ("open_clip", "load_open_clip"),
    "mmt": ("mmt.embedder", "load_mmt"),
    "mobileclip": ("mobileclip.load", "load_mobileclip"),
    "sentence": ("sentences", "load_sentences"),
    "joint": ("joint_space", "load_joint_space"),
}


def load_embedder(spec: Spec, **options: Any) -> NetworkEmbedder:
    """The embedder that a specification names.

    `timm:NAME`, `hf:FOLDER_OR_ID`, `onnx:FILE`, `imagebind:FOLDER`, `open_clip:NAME`, `mmt:FOLDER`,
    `mobileclip:FILE`, `sentence:FOLDER` (texts alone), `joint:FOLDER` (a space of two encoders), or
    any function or module over pictures. Options are the loader's keywords
    (`device`, `output`, `preprocess`, ...); in a string they may follow a question mark:
    `onnx:net.onnx?output=logits`, `timm:vit_small_patch14_dinov2?image_size=224`.

    Raises:
        ConfigError: unknown family or option
        CheckpointError: the weights are missing or do not fit
    """
    if isinstance(spec, NetworkEmbedder):
        return spec
    if not isinstance(spec, str | Path):
        if not callable(spec):
            raise ConfigError(f"an embedder is a name or a callable, got {type(spec).__name__}")
        return call_loader("callable", wrap_callable, spec, options)
    family, source, written = parse_spec(str(spec))
    module, function = FAMILIES[family]
    loader = getattr(import_module(f"fourm_lite.embedders.{module}"), function)
    return call_loader(family, loader, source, {**written, **options})


def parse_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Family, source and options of `family:source?option=value`.

    Raises:
        ConfigError: it is written otherwise, or the family is unknown
    """
    family, colon, rest = spec.partition(":")
    if not colon or family not in FAMILIES or not rest:
        forms = ", ".join(f"{name}:..." for name in FAMILIES)
        raise ConfigError(
            f"an embedder is written {forms} or given as a callable, got '{spec}'."
            f"{suggest(family, FAMILIES)}"
        )
    source, _, query = rest.partition("?")
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    pairs = parse_qsl(query, keep_blank_values=True)
    return family, source, {key: int(v) if v.isdecimal() else v for key, v in pairs}


def call_loader(
    family: str, loader: Callable[..., Any], source: Any, options: dict[str, Any]
) -> Any:
    """What a loader gives for a source.

    Raises:
        ConfigError: it does not know an option
    """
    import inspect

    known = [name for name in inspect.signature(loader).parameters if name != "source"]
    check_choice(f"an option of '{family}' embedders", *options, of=known)
    if "device" in options and family != "onnx":  # onnxruntime has devices of its own
        options = {**options, "device": str(usable_device(options["device"]))}
    return loader(source, **options)


Function = Callable[[Any], Any]


def wrap_callable(
    image: Function | None,
    *,
    text: Function | None = None,
    patches: Function | None = None,
    preprocess: Preprocess | str | None = None,
    name: str | None = None,
    device: str = "cpu",
) -> NetworkEmbedder:
    """An embedder from functions that take a list of pictures (or texts) and return vectors.

    With `preprocess` (a value or a preset's name) a function gets float32[B, 3, H, W] instead of
    PIL pictures; an `nn.Module` always does, and is put into evaluation mode. Results may be
    tensors, arrays, lists of vectors, tuples or output objects. Two functions without weights and
    with the same name share a fingerprint: give them different names.

    Raises:
        ConfigError: neither images nor text, or a module without preprocessing
    """
    if image is None and text is None:
        raise ConfigError("an embedder needs a function for pictures or for text, got neither")
    modules = [f for f in (image, text, patches) if isinstance(f, nn.Module)]
    if preprocess is None and isinstance(image, nn.Module):
        raise ConfigError(
            "a module needs its preprocessing: preprocess='imagenet', 'clip', 'unit' or an "
            "ImagePreprocess(...)"
        )
    for module in modules:
        module.to(device).eval()
    prepare = preset(preprocess) if isinstance(preprocess, str) else preprocess
    label = name or _label(image or text)
    return NetworkEmbedder(
        f"callable:{label}",
        Towers(_prepared(image, prepare, device), text, _prepared(patches, prepare, device)),
        identity=lambda: _identity(label, modules),
        preprocess=prepare,
    )


def _prepared(
    function: Function | None, prepare: Preprocess | None, device: str
) -> Callable[[list[Image]], Any] | None:
    if function is None or prepare is None:
        return function

    def embed(images: list[Any]) -> Any:
        assert prepare is not None
        return function(pixels_of(prepare, images).to(torch.device(device)))

    return embed


def _label(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _identity(label: str, modules: list[nn.Module]) -> str:
    weights = [fingerprint_module(module) for module in modules]
    return hashlib.sha256("\n".join([label, *weights]).encode()).hexdigest()
