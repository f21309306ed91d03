"""Any function or module as an embedder: the door for networks that nobody here has heard of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fourm_lite.embedders.base import NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.image_configs import Preprocess, pixels_of, preset
from fourm_lite.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

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
