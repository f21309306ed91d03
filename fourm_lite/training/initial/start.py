"""A model's start from what others learned: a pretrained ViT, a map of foreign vectors, the first
convolutions of a MobileNetV2, and solved heads of distillation.

The encoder's block of 4M (pre-norm, GELU, biases) is that of a ViT, so its weights go in unchanged.
Heads begin as regressions, for until a head has learnt, which takes hundreds of steps from noise,
its gradient leads the encoder astray. Unusual: what convolutions see is mapped to the encoder's
width by its principal components, all of one deviation. Of features as they are, a few are large
and alike in all pictures, and a decoder takes many times as long to learn to read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.data.linear import ridge, solve_ridge
from fourm_lite.data.loader import MaskedBatch, MaskedStream
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD
from fourm_lite.model.embeddings import PixelEncoder
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.posemb import resize_table
from fourm_lite.training.distill import DistilledFourM, as_cells, grid_of

Constants = dict[str, np.ndarray[Any, Any]]

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@torch.no_grad()
def start_from_vit(
    model: FourM,
    weights: Mapping[str, Tensor],
    pixels: str = "rgb@224",
    *,
    mean: float = 0.5,
    std: float = 0.5,
) -> list[str]:
    """Writes a timm ViT into the encoder and the pixel embedding; returns what was left out.

    The patch kernel takes over the difference in normalisation ((x - mean) / std there, ImageNet's
    here), its bias and the first row of positions go to the modality's vector and to the register
    token (the ViT's class token), positions to a learned table.

    Raises:
        ConfigError: the model has other blocks, no register token, or fixed positions
        CheckpointError: the ViT has another width, or lacks a tensor
    """
    embedding = model.encoder_embeddings[pixels]
    if not isinstance(embedding, PixelEncoder) or not isinstance(embedding.pos_emb, nn.Parameter):
        raise ConfigError(f"'{pixels}' needs kind 'pixels' and pos_embed 'learned'")
    if model.config.num_register_tokens != 1:
        raise ConfigError("a ViT's class token needs num_register_tokens = 1")
    own = model.state_dict()
    moved = {_own_name(name): value.float() for name, value in weights.items()}
    for name, value in moved.items():
        if name in own and name.startswith("encoder"):
            if own[name].shape != value.shape:
                raise CheckpointError(
                    f"'{name}' is {list(own[name].shape)} here and {list(value.shape)} in the ViT"
                )
            own[name].copy_(value)
    try:
        _start_pixels(model, embedding, weights)
    except KeyError as error:
        raise CheckpointError(
            f"the ViT has no tensor {error}; give one with timm's names"
        ) from None
    fold_normalisation(embedding, mean, std)
    used = {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"}
    return sorted(n for n in weights if n not in used and _own_name(n) not in own)


def _own_name(name: str) -> str:
    match = _BLOCK.fullmatch(name)
    if match:
        return f"encoder.{match[1]}.{match[2]}"
    return name.replace("norm.", "encoder_norm.", 1) if name.startswith("norm.") else name


def _start_pixels(model: FourM, embedding: PixelEncoder, weights: Mapping[str, Tensor]) -> None:
    kernel = weights["patch_embed.proj.weight"].float()
    p = embedding.patch_size
    if kernel.shape[-1] != p:
        kernel = nn.functional.interpolate(kernel, (p, p), mode="bicubic", antialias=True)
        kernel = kernel * (weights["patch_embed.proj.weight"].shape[-1] / p) ** 2
    embedding.proj.weight.copy_(rearrange(kernel, "d c p q -> d (p q c)"))
    embedding.mod_emb.copy_(weights["patch_embed.proj.bias"].float().view(1, 1, -1))
    table = weights["pos_embed"].float()
    side = round((table.shape[1] - 1) ** 0.5)
    assert embedding.modality.grid is not None
    embedding.pos_emb.copy_(resize_table(table[:, 1:], (side, side), embedding.modality.grid))
    model.register_tokens.copy_(weights["cls_token"].float() + table[:, :1])


def fold_normalisation(embedding: PixelEncoder, mean: float, std: float) -> None:
    """Makes a kernel for (x - mean) / std read ImageNet-normalised pixels instead."""
    p = embedding.patch_size
    kernel = rearrange(embedding.proj.weight, "d (pq c) -> d pq c", c=3, pq=p * p)
    scale, shift = _of_imagenet(1 / std, -mean / std)
    offset = (kernel * shift).sum(dim=(1, 2))
    embedding.mod_emb.add_(offset.view(1, 1, -1))
    embedding.proj.weight.copy_(rearrange(kernel * scale, "d pq c -> d (pq c)"))


def _of_imagenet(scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """What x * scale + shift of x in [0, 1] is of ImageNet-normalised x: a scale and shift each."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return std * scale, mean * scale + shift


def table_of(model: FourM, name: str) -> nn.Embedding:
    """The encoder's vectors of a modality's tokens.

    Raises:
        ConfigError: the encoder does not read the modality, or it is not one of tokens
    """
    known = model.encoder_embeddings
    table = getattr(known[name], "token_emb", None) if name in known else None
    if not isinstance(table, nn.Embedding):
        raise ConfigError(f"the encoder has no table of tokens for {name!r}")
    return table


@torch.no_grad()
def start_features(
    linear: nn.Linear,
    vectors: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    table: nn.Embedding,
    penalty: float = 0.1,
) -> None:
    """Solves the map of foreign vectors so that each begins as the mean of its captions' words.

    Shapes:
        vectors: float[N, E]; captions: ids of the words of each caption of each of the N
    Units:
        penalty: of the regression, in mean variances of a component
    """
    rows = [[i for words in said for i in words] for said in captions]
    goals = torch.stack([table.weight[row].mean(dim=0) for row in rows])
    spread = vectors.var(dim=0).mean() * len(vectors)
    found = ridge(vectors - vectors.mean(dim=0), goals, float(penalty * spread))
    known = torch.tensor(sorted({i for row in rows for i in row}))
    size = table.weight[known].norm(dim=1).mean() / goals.norm(dim=1).mean()  # as long as a word
    linear.weight.copy_(size * found[:-1].T)
    linear.bias.copy_(size * (found[-1] - vectors.mean(dim=0) @ found[:-1]))


def first_batches(stream: MaskedStream, fits: Sequence[bool], number: int) -> Iterator[MaskedBatch]:
    """The first batches of those of a stream's components that fit.

    Units:
        fits: of each component; at least one is needed, else no batch ever fits
    """
    steps = (step for step in count() if fits[stream.turn(step)[0]])
    return (stream.batch(step) for step in islice(steps, number))


class _Sums:
    """Second moments of a head's inputs, with a one at their end, and of what it should say."""

    def __init__(self, head: nn.Linear) -> None:
        width = head.in_features + 1
        self.inner = torch.zeros(width, width, dtype=torch.float64)
        self.outer = torch.zeros(width, head.out_features, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        x = torch.cat([x.float(), x.new_ones(len(x), 1)], dim=1)
        self.inner += (x.T @ x).double()
        self.outer += (x.T @ y.float()).double()

    def solve(self, head: nn.Linear) -> None:
        """Ridge regression; the penalty weighs as much as one row for each input."""
        rows, width = self.inner[-1, -1], len(self.inner) - 1
        if not rows:
            return
        penalty = torch.full((width + 1,), float(self.inner.diagonal()[:-1].mean() * width / rows))
        penalty[-1] = 0.0
        found = solve_ridge(self.inner, self.outer, penalty.double())
        head.weight.copy_(found[:-1].T)
        head.bias.copy_(found[-1])


@torch.no_grad()
def start_heads(model: DistilledFourM, stream: MaskedStream, batches: int) -> None:
    """Solves the heads on the stream's first batches that give pixels and have maps.

    Units:
        batches: how many; where the stream has no such component, nothing is done
    """
    heads: dict[str, nn.Linear] = dict(model.distill_heads.items())  # type: ignore[arg-type]
    fits = [
        model.pixels in c.inputs and bool(heads.keys() & {*c.labels}) for c in stream.components
    ]
    if not any(fits):
        return
    sums = {name: _Sums(head) for name, head in heads.items()}
    training = model.training
    model.eval()
    for batch in first_batches(stream, fits, batches):
        encoded = model.encode(batch.batch, batch.input_budget)
        for name in heads.keys() & batch.labels.keys():
            said = batch.labels[name]
            means, present = model.cells(name, encoded, grid_of(said))
            sums[name].add(means[present], as_cells(said, present.shape[1])[present])
    for name, head in heads.items():
        sums[name].solve(head)
    model.train(training)


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
    _read_imagenet(layers[0], *_scale_and_shift(graph, constants, path))
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


def _read_imagenet(layer: nn.Conv2d, scale: float, shift: float) -> None:
    """Makes a kernel for x * scale + shift of x in [0, 1] read ImageNet-normalised pixels."""
    factor, offset = _of_imagenet(scale, shift)
    assert layer.bias is not None
    layer.bias.add_((layer.weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3)))
    layer.weight.mul_(factor.view(1, -1, 1, 1))
