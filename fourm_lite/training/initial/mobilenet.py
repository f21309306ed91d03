"""Convolutions beside an encoder that begin as the first layers of a trained network.

Unusual: what they see is mapped to the encoder's width by its principal components, all of one
deviation. Of features as they are, a few are large and alike in all pictures, and a decoder takes
many times as long to learn to read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.data.loader import MaskedStream
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD
from fourm_lite.model.embeddings import PixelEncoder
from fourm_lite.model.fourm import FourM
from fourm_lite.training.initial.start import first_batches

Constants = dict[str, np.ndarray[Any, Any]]


@torch.no_grad()
def start_convolutions(model: FourM, path: Path) -> None:
    """Writes the first convolutions of an ONNX file into those that read pixels here.

    The file reads pixels in [0, 1], scaled and shifted by what it holds itself, a number each; the
    first kernel takes over the difference to ImageNet's normalisation. Nothing is added to the
    encoder's output until `start_map`.

    Raises:
        ConfigError: no pixels with convolutions
        CheckpointError: the file is no MobileNetV2 of width 1
        FourMError: the package onnx is missing
    """
    embedding = _pixels(model)
    assert embedding.convolutions is not None
    layers = embedding.convolutions.layers()
    graph = _read(path).graph
    constants = _constants(graph)
    kernels = list(islice(_kernels(graph, constants), len(layers)))
    theirs = [list(weight.shape) for weight, _ in kernels]
    own = [list(layer.weight.shape) for layer in layers]
    if theirs != own:
        number = next((i for i, (a, b) in enumerate(zip(theirs, own, strict=False)) if a != b), -1)
        raise CheckpointError(
            f"'{path}' is no MobileNetV2 of width 1: expected {len(own)} convolutions that begin "
            f"{own[0]}, {own[1]}, got {len(theirs)}; number {number} differs"
        )
    for layer, (weight, bias) in zip(layers, kernels, strict=True):
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.copy_(bias)
    _fold_normalisation(layers[0], *_scale_and_shift(graph, constants, path))
    embedding.conv_map.weight.zero_()
    embedding.conv_map.bias.zero_()


@torch.no_grad()
def start_map(model: FourM, stream: MaskedStream, batches: int, *, deviation: float = 0.25) -> None:
    """Maps what the convolutions see to its principal components, from the stream's first batches.

    Units:
        batches: how many that give pixels
        deviation: standard deviation of each; small beside the encoder's output, which is about 1
    """
    embedding = _pixels(model)
    name = embedding.modality.name
    fits = [name in c.inputs for c in stream.components]
    if not any(fits):
        return
    width = embedding.conv_map.in_features + 1
    sums = torch.zeros(width, width, dtype=torch.float64)
    for batch in first_batches(stream, fits, batches):
        seen = embedding.seen(batch.batch[name]).flatten(0, 1)
        rows = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        sums += (rows.T @ rows).double()
    sums /= sums[-1, -1].clone()
    mean = sums[-1, :-1]
    power, axes = torch.linalg.eigh(sums[:-1, :-1] - mean.outer(mean))
    largest = axes.T.flip(0)[: embedding.conv_map.out_features]
    scale = power.flip(0)[: len(largest)].clamp(min=1e-6).sqrt()
    kept = largest * (deviation / scale)[:, None]
    embedding.conv_map.weight[: len(kept)] = kept.to(embedding.conv_map.weight)
    embedding.conv_map.bias[: len(kept)] = -(kept @ mean).to(embedding.conv_map.bias)


def _pixels(model: FourM) -> PixelEncoder:
    for embedding in model.encoder_embeddings.values():
        if isinstance(embedding, PixelEncoder) and embedding.convolutions is not None:
            return embedding
    raise ConfigError("start.convolutions needs a modality of pixels with convolutions = true")


def _read(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise FourMError("start.convolutions needs the package onnx: pip install onnx") from error
    if not path.is_file():
        raise CheckpointError(f"expected an ONNX file, '{path}' does not exist")
    return onnx.load(str(path))


def _constants(graph: Any) -> Constants:
    """The file's tensors by name, those with int8 weights as floats."""
    from onnx import numpy_helper

    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and all(name in found for name in node.input):
            values, scale, *zero = (found[name].astype(np.float32) for name in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [1] * values.ndim
            if scale.ndim:
                shape[axis] = -1
            values = values - (zero[0].reshape(shape) if zero else 0)
            found[node.output[0]] = values * scale.reshape(shape)
    return found


def _kernels(graph: Any, constants: Constants) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution, in the order of the graph."""
    for node in graph.node:
        if node.op_type == "Conv":
            weight, bias = (constants[name] for name in node.input[1:])
            yield torch.tensor(weight), torch.tensor(bias)


def _scale_and_shift(graph: Any, constants: Constants, path: Path) -> tuple[float, float]:
    """What a file does to pixels before the first convolution: x * scale + shift."""
    before = [n for n in graph.node if n.op_type in ("Mul", "Add", "Conv")][:3]
    if [n.op_type for n in before] != ["Mul", "Add", "Conv"]:
        raise CheckpointError(f"'{path}' should scale and shift pixels before it convolves them")
    scale, shift = (float(constants[node.input[1]]) for node in before[:2])
    return scale, shift


def _fold_normalisation(layer: torch.nn.Conv2d, scale: float, shift: float) -> None:
    """Makes a kernel for x * scale + shift of x in [0, 1] read ImageNet-normalised pixels."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    offset: Tensor = mean * scale + shift
    assert layer.bias is not None
    layer.bias.add_((layer.weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3)))
    layer.weight.mul_((std * scale).view(1, -1, 1, 1))
