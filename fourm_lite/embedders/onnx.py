"""Embedders from ONNX files, with a choice of the output that is the vector.

An ONNX file says its inputs and outputs but not how pictures become pixels: a
preprocessor_config.json beside the file is read, else pixels are taken in [0, 1] after a resize of
the short edge and a centre crop to the input's size. Needs onnxruntime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Towers
from fourm_lite.embedders.image_configs import Preprocess, from_transformers, pixels_of, preset
from fourm_lite.embedders.image_transforms import ImagePreprocess
from fourm_lite.errors import ConfigError, FourMError, ShapeError, check_choice
from fourm_lite.io.onnx_files import open_session
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.reading.regular import read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

VECTORS = ("embedding", "embeddings", "image_embeds", "pooler_output", "last_hidden_state")
TYPES: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}  # fmt: skip
MAPS = ("feature_map", "patches", "last_hidden_state", "features")


def load_onnx(
    source: str,
    *,
    device: str = "cpu",
    output: str | None = None,
    patches: str | None = None,
    preprocess: Preprocess | str | None = None,
    image_size: int | None = None,
) -> NetworkEmbedder:
    """An embedder from an ONNX file with one picture input, [B, 3, H, W] or [B, H, W, 3].

    A network that reads bytes (uint8) scales and normalises by itself: it gets pixels of 0..255.

    `output` and `patches` name the outputs that are the vector and the feature map; left out, they
    are found by name ("embedding", "feature_map", ...) and rank.

    Raises:
        CheckpointError: no such file, or no ONNX file
        ConfigError: no such output, or an input that is no picture
    """
    path = Path(source)
    session = open_session(path, device=device)
    entry = _input(session)
    outputs = {item.name: len(item.shape or ()) for item in session.get_outputs()}
    vector = _choose(outputs, output, VECTORS, (2,))
    feature_map = _choose(outputs, patches, MAPS, (3, 4))
    if vector is None:
        raise ConfigError(f"'{source}' has no output [B, E]; its outputs are {list(outputs)}")
    prepare = _preprocess(path, preprocess, entry.shape, image_size)
    run = _runner(session, prepare, str(path))
    return NetworkEmbedder(
        f"onnx:{source}",
        Towers(
            image=lambda images: run(images, vector),
            patches=None if feature_map is None else lambda images: run(images, feature_map),
        ),
        identity=lambda: hashlib.sha256(read_bytes(path)).hexdigest(),
        preprocess=prepare,
        facts={"output": vector, "patches": feature_map},
        label=f"onnx:{vector}",
    )


def _input(session: Any) -> Any:
    """The one input, a picture: its name, shape and type.

    Raises:
        ConfigError: there are others, it is no picture, or its numbers are not known here
    """
    inputs = session.get_inputs()
    shape: Sequence[Any] = inputs[0].shape or ()
    # Exporters name what they leave open: "batch_size", "num_channels", ... or nothing at all
    channels = shape[_channels(shape)] if len(shape) == 4 else 0
    if len(inputs) != 1 or (isinstance(channels, int) and channels != 3):
        raise ConfigError(
            f"expected one input [B, 3, H, W] or [B, H, W, 3], the file has "
            f"{[(item.name, item.shape) for item in inputs]}"
        )
    if inputs[0].type not in TYPES:
        raise ConfigError(
            f"the network reads {inputs[0].type}, known are {', '.join(TYPES)}; export it with "
            "normalised floats as its input"
        )
    return inputs[0]


def _channels(shape: Sequence[Any]) -> int:
    """Which axis of [B, ...] the colours are: the last one, as TensorFlow has it, or the second."""
    return 3 if shape[3] == 3 and shape[1] != 3 else 1


def _edges(shape: Sequence[Any]) -> list[Any]:
    """Height and width, as the file says them."""
    return list(shape[1:3] if _channels(shape) == 3 else shape[2:])


def _size(shape: Sequence[Any], image_size: int | None) -> tuple[int, int]:
    """Height and width that the network reads: the file's own, or as asked where it leaves them.

    Raises:
        ConfigError: nobody says, or both say and differ
    """
    fixed = [edge if isinstance(edge, int) and edge > 0 else None for edge in _edges(shape)]
    sizes = [edge or image_size for edge in fixed]
    if image_size is not None and any(size != image_size for size in sizes):
        raise ConfigError(f"the file reads pictures of {fixed}, got image_size={image_size}")
    if None in sizes:
        raise ConfigError("the file leaves the picture's size open; pass image_size=224 or so")
    return int(sizes[0] or 0), int(sizes[1] or 0)


def _choose(
    outputs: dict[str, int], named: str | None, usual: Sequence[str], ranks: tuple[int, ...]
) -> str | None:
    if named is not None:
        check_choice("an output of the file", named, of=outputs)
        return named
    fitting = [name for name, rank in outputs.items() if rank in ranks]
    by_name = [name for name in usual if name in fitting]
    return next(iter(by_name + fitting), None)


def _preprocess(
    path: Path, given: Preprocess | str | None, shape: Sequence[Any], image_size: int | None
) -> Preprocess:
    if given is not None and not isinstance(given, str):
        return given
    beside = path.parent / "preprocessor_config.json"
    if given is None and beside.is_file():
        config = path.parent / "config.json"
        kind = read_json_object(config).get("model_type") if config.is_file() else None
        return from_transformers(read_json_object(beside), model_type=kind)
    size = _size(shape, image_size)
    found = preset(given or "unit")
    resize = "shortest" if size[0] == size[1] else "cover"
    return type(found)(**{**vars(found), "size": size, "crop": size, "resize": resize})


def _scale_of_bytes(prepare: Preprocess) -> float:
    """What brings a preprocessing's values back to 0..255.

    Raises:
        ConfigError: it normalises, or does what is not known here
    """
    if isinstance(prepare, ImagePreprocess):
        plain, scale = not any(prepare.mean) and set(prepare.std) == {1.0}, prepare.scale
    else:
        made = getattr(prepare, "processor", None)
        plain = getattr(made, "do_normalize", True) is False
        rescaled = getattr(made, "do_rescale", False)
        scale = float(getattr(made, "rescale_factor", 1.0)) if rescaled else 1.0
    if not plain:
        raise ConfigError(
            "the network reads bytes (uint8) and normalises by itself, and its preprocessing "
            "normalises too; pass preprocess='unit', or one without mean and deviation"
        )
    return 1 / scale


def _runner(
    session: Any, prepare: Preprocess, name: str
) -> Callable[[list[Image], str], np.ndarray[Any, Any]]:
    entry = session.get_inputs()[0]
    kind = TYPES[entry.type]
    scale = _scale_of_bytes(prepare) if kind is np.uint8 else None
    last = _channels(entry.shape) == 3
    batch = entry.shape[0]
    batch = batch if isinstance(batch, int) and batch > 0 else None

    def call(pixels: Tensor, output: str) -> np.ndarray[Any, Any]:
        count = len(pixels)
        if (
            batch is not None and count < batch
        ):  # a network of a fixed batch: the last one is filled
            pixels = torch.cat([pixels, pixels[-1:].expand(batch - count, -1, -1, -1)])
        whole = pixels if scale is None else (pixels * scale).round().clamp(0, 255)
        laid = whole.permute(0, 2, 3, 1) if last else whole
        values = np.ascontiguousarray(laid.numpy().astype(kind))
        try:
            found: np.ndarray[Any, Any] = session.run([output], {entry.name: values})[0]
        except Exception as error:  # onnxruntime's own types have no common base
            raise FourMError(
                f"'{name}' cannot take {values.dtype}{list(values.shape)}, it reads {entry.type}"
                f"{entry.shape}: {str(error).splitlines()[0]}"
            ) from error
        if batch is not None and len(found) != batch:
            raise ShapeError(
                f"'{name}' gives '{output}' {list(found.shape)} of {batch} pictures; an embedder "
                "gives one row a picture"
            )
        found = found[:count] if batch is not None else found
        return np.moveaxis(found, -1, 1) if last and found.ndim == 4 else found

    def run(images: list[Image], output: str) -> np.ndarray[Any, Any]:
        pixels = pixels_of(prepare, images)
        parts = [pixels] if batch is None else pixels.split(batch)
        return np.concatenate([call(part, output) for part in parts])

    return run
