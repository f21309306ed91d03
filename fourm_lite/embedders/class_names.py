"""A joint space without a photo's caption: a picture is what a classifier sees, said in words.

The names of the classes pass through the sentence encoder, and a picture's vector is their mean by
probability. Texts lose the mean of many texts, names their own: what all sentences share tells
nothing. Directions in which names differ much are shortened, in names and texts alike.
Source: ConSE (Norouzi et al. 2014), with a sentence encoder in place of word vectors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.joint_space import JointHeads, WordWeights, save_joint_space
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.tower_outputs import ClassMean
from fourm_lite.errors import ConfigError
from fourm_lite.reading.regular import read_bytes

LEAST_TEXTS = 8


def read_names(path: Path) -> list[tuple[str, ...]]:
    """The names of each class, in the order of the classes: a line a class, tabs between names.

    Raises:
        ConfigError: a line holds no name
        FourMError: the file cannot be read
    """
    lines = read_bytes(path).decode("utf-8", "replace").rstrip("\n").split("\n")
    rows = [tuple(name.strip() for name in line.split("\t") if name.strip()) for line in lines]
    if () in rows:
        raise ConfigError(f"line {rows.index(()) + 1} of {path} names no class; write one a line, "
                          "names of one class with tabs between them")  # fmt: skip
    return rows


def space_of_classes(
    image: str,
    text: str,
    names: Sequence[Sequence[str]],
    texts: Sequence[str],
    folder: Path,
    *,
    sharpness: float = 0.4,
    evenness: float = 0.5,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the folder of a joint space of a classifier and a sentence encoder.

    Units:
        image: specification of an embedder that gives the logits of a picture
        names: of each class, in the order of the logits; texts: such as will be asked for
        sharpness: what logits are multiplied by; evenness: 0 leaves directions as they are, 1
            makes names differ as much in each
    Raises:
        ConfigError: too few texts, or the classifier has another number of classes
        FourMError: an encoder reads no pictures, or no texts
    """
    if len(texts) < LEAST_TEXTS:
        raise ConfigError(f"the mean of texts needs at least {LEAST_TEXTS} of them, got "
                          f"{len(texts)}")  # fmt: skip
    seen, said = load_embedder(image), load_embedder(text)
    if seen.dim != len(names):
        raise ConfigError(
            f"'{image}' gives {seen.dim} numbers a picture, and {len(names)} classes are named; a "
            "classifier of timm gives its logits by ?output=projected"
        )
    vectors = _of_names(said, names)
    scaled = vectors - vectors.mean(0)
    even = _evened(scaled, evenness)
    heads = JointHeads(len(names), said.dim, 0, said.dim, classes=True)
    assert isinstance(heads.image, ClassMean)
    assert heads.text is not None
    heads.image.classes.copy_(scaled @ even)
    heads.image.sharpness.fill_(sharpness)
    heads.text.linear.weight.data.copy_(even.T)
    heads.text.linear.bias.data.zero_()
    heads.text.mean.copy_(_embedded(said, texts).mean(0))
    encoders = {"image": image, "text": text}
    return save_joint_space(folder, heads, WordWeights((), ()), encoders, dict(facts or {}))


def _of_names(encoder: NetworkEmbedder, names: Sequence[Sequence[str]]) -> Tensor:
    """The mean of the unit vectors of a class's names, again of length 1: float32[K, D]."""
    flat = [name for row in names for name in row]
    vectors = _embedded(encoder, flat).split([len(row) for row in names])
    return F.normalize(torch.stack([rows.mean(0) for rows in vectors]), dim=-1)


def _embedded(encoder: NetworkEmbedder, texts: Sequence[str]) -> Tensor:
    return torch.from_numpy(encoder.embed_text(texts))


def _evened(centred: Tensor, evenness: float) -> Tensor:
    """A symmetric map float32[D, D] that shortens the directions of much spread.

    The mean spread is added to each, so that directions without any are not blown up.
    """
    spread, directions = torch.linalg.eigh(centred.double().T @ centred.double() / len(centred))
    spread = spread.clamp(min=0)
    factors = ((spread + spread.mean()) / spread.mean()).pow(-evenness / 2)
    return (directions * factors @ directions.T).float()
