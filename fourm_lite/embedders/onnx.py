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
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Towers
from fourm_lite.embedders.image_configs import Preprocess, from_transformers, preset
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, suggest
from fourm_lite.io.onnx import fold_weights
from fourm_lite.io.strict_json import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

VECTORS = ("embedding", "embeddings", "image_embeds", "pooler_output", "last_hidden_state")
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
    """An embedder from an ONNX file with one picture input [B, 3, H, W].

    `output` and `patches` name the outputs that are the vector and the feature map; left out, they
    are found by name ("embedding", "feature_map", ...) and rank.

    Raises:
        CheckpointError: no such file, or no ONNX file
        ConfigError: no such output, or an input that is no picture
    """
    path = Path(source)
    session = _session(path, device)
    height, width = _input_size(session, image_size)
    outputs = {item.name: len(item.shape) for item in session.get_outputs()}
    vector = _choose(outputs, output, VECTORS, (2,))
    feature_map = _choose(outputs, patches, MAPS, (3, 4))
    if vector is None:
        raise ConfigError(f"'{source}' has no output [B, E]; its outputs are {list(outputs)}")
    prepare = _preprocess(path, preprocess, (height, width))
    run = _runner(session, prepare)
    return NetworkEmbedder(
        f"onnx:{source}",
        Towers(
            image=lambda images: run(images, vector),
            patches=None if feature_map is None else lambda images: run(images, feature_map),
        ),
        identity=lambda: hashlib.sha256(path.read_bytes()).hexdigest(),
        preprocess=prepare,
        facts={"output": vector, "patches": feature_map},
        label=f"onnx:{vector}",
    )


def _session(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise FourMError(
            "an ONNX embedder needs onnxruntime: pip install 'fourm-lite[export]'"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"expected an ONNX file, '{path}' does not exist")
    wanted = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise ConfigError(f"onnxruntime offers {onnxruntime.get_available_providers()}: {device}?")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    fold_weights(options, path)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # onnxruntime's own types have no common base
        raise CheckpointError(f"'{path}' cannot be read as ONNX: {error}") from error


def _input_size(session: Any, image_size: int | None) -> tuple[int, int]:
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None, "C", "channels"):
        raise ConfigError(
            f"expected one input [B, 3, H, W], the file has "
            f"{[(item.name, item.shape) for item in inputs]}"
        )
    sizes = [image_size or (edge if isinstance(edge, int) else None) for edge in shape[2:]]
    if None in sizes:
        raise ConfigError("the file leaves the picture's size open; pass image_size=224 or so")
    return int(sizes[0] or 0), int(sizes[1] or 0)


def _choose(
    outputs: dict[str, int], named: str | None, usual: Sequence[str], ranks: tuple[int, ...]
) -> str | None:
    if named is not None:
        if named not in outputs:
            raise ConfigError(
                f"the file's outputs are {list(outputs)}, got '{named}'.{suggest(named, outputs)}"
            )
        return named
    fitting = [name for name, rank in outputs.items() if rank in ranks]
    by_name = [name for name in usual if name in fitting]
    return next(iter(by_name + fitting), None)


def _preprocess(path: Path, given: Preprocess | str | None, size: tuple[int, int]) -> Preprocess:
    if given is not None and not isinstance(given, str):
        return given
    beside = path.parent / "preprocessor_config.json"
    if given is None and beside.is_file():
        return from_transformers(read_json_object(beside))
    found = preset(given or "unit")
    resize = "shortest" if size[0] == size[1] else "cover"
    return type(found)(**{**vars(found), "size": size, "crop": size, "resize": resize})


def _runner(
    session: Any, prepare: Preprocess
) -> Callable[[list[Image], str], np.ndarray[Any, Any]]:
    name = session.get_inputs()[0].name
    fixed = session.get_inputs()[0].shape[0] == 1  # exported for one picture at a time

    def run(images: list[Image], output: str) -> np.ndarray[Any, Any]:
        pixels: Tensor = prepare.batch(list(images))["pixel_values"]
        parts = pixels.split(1) if fixed else [pixels]
        found = [session.run([output], {name: part.numpy()})[0] for part in parts]
        return np.concatenate(found)

    return run
