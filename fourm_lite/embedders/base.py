"""What every embedding network looks like from outside: pictures or words in, vectors out.

One class, `NetworkEmbedder`, does what all families share: reading pictures, batching, unit length,
and refusing vectors that nobody should store. A family (`hf.py`, `onnx.py`, ...) hands it `Towers`.
Imports torch and NumPy only; networks come in as callables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourm_lite.embedders.image_transforms import grey_picture
from fourm_lite.embedders.tower_outputs import as_patches, as_vectors
from fourm_lite.errors import ConfigError, FourMError, ShapeError, check_most, foreign_errors
from fourm_lite.modalities.pictures import SPARE, PictureSource, decode
from fourm_lite.nn.device import threads_for
from fourm_lite.unit import lengths, unit

if TYPE_CHECKING:
    from PIL.Image import Image

Vectors = NDArray[np.float32]
Value = TypeVar("Value")
Reads = Literal["pictures", "regions", "items"]
BEFORE_CROP = 8 / 7
"""How much larger than what is cut out of it a photo is made, as a rule: 256 for 224."""
TEXT_ROWS = 64
"""About how many tokens a text has."""


@dataclass(frozen=True)
class Space:
    """Where vectors live: a name for people and a fingerprint of weights and preprocessing."""

    name: str
    dim: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name}#{self.fingerprint[:12]}"

    def require(self, other: Space) -> None:
        """Checks that vectors of `other` may be compared with vectors of this space.

        Raises:
            ConfigError: width or fingerprint differ; the message names both spaces
        """
        if (self.dim, self.fingerprint) != (other.dim, other.fingerprint):
            raise ConfigError(
                f"vectors of space '{self}' (width {self.dim}) cannot be compared with vectors of "
                f"space '{other}' (width {other.dim}); embed both sides with one network"
            )


@dataclass(frozen=True)
class LogitScale:
    """How a dual encoder turns cosines into logits: `scale * cosine + bias`."""

    scale: float
    bias: float = 0.0


@dataclass(frozen=True)
class Towers:
    """The callables of one network; what it cannot do is None."""

    image: Callable[[list[Image]], Any] | None = None
    text: Callable[[list[str]], Any] | None = None
    patches: Callable[[list[Image]], Any] | None = None


class NetworkEmbedder:
    """One network as an embedder; made by `load_embedder`, not by hand.

    `name` is the specification it was loaded from, `label` the kind of network without any path
    (the name of its space), `preprocess` what happens to its pictures, `logit_scale` the network's
    own scale for zero-shot classification (None: it has none). `read` opens what a user gives as a
    picture, `reads` says what that is: photos, or regions that a detector found in them. `dim` is
    the width, where it is known before the first vector.
    """

    def __init__(
        self,
        name: str,
        towers: Towers,
        *,
        identity: Callable[[], str],
        preprocess: Any = None,
        logit_scale: LogitScale | None = None,
        facts: Mapping[str, Any] | None = None,
        label: str | None = None,
        read: Callable[[Any], Any] = decode,
        reads: Reads = "pictures",
        dim: int | None = None,
    ) -> None:
        self.name = name
        self.label = label or name
        self.towers = towers
        self.preprocess = preprocess
        self.logit_scale = logit_scale
        self.facts = dict(facts or {})
        self.reads = reads
        self._read = read
        self._identity = identity
        if dim is not None:
            self.__dict__["dim"] = dim  # what `dim` will answer

    @property
    def can(self) -> tuple[str, ...]:
        """What the network embeds, out of "image", "text" and "patches"."""
        kinds = ("image", "text", "patches")
        return tuple(kind for kind in kinds if getattr(self.towers, kind) is not None)

    @cached_property
    def dim(self) -> int:
        """Width of a vector: of the first one seen, else of a grey picture or a short text."""
        if self.towers.image is not None:
            return int(self.embed_image([grey_picture()], normalize=False).shape[1])
        return int(self.embed_text(["a photo"], normalize=False).shape[1])

    @cached_property
    def short_side(self) -> int | None:
        """Pixels of a photo's short side that the network needs, with some to spare.

        None where photos of unlike sizes become inputs of unlike sizes: then all count.
        """
        batch = getattr(self.preprocess, "batch", None)
        if batch is None or self.reads != "pictures":
            return None
        unlike = grey_picture(640, 480), grey_picture(500, 600)
        shapes = [[v.shape[-2:] for v in batch([p]).values() if v.ndim == 4] for p in unlike]
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            return None
        return round(SPARE * BEFORE_CROP * max(shapes[0][0]))

    @cached_property
    def space(self) -> Space:
        """Name and fingerprint: equal weights, preprocessing and output give equal fingerprints."""
        return Space(self.label, self.dim, self._fingerprint(repr(self.preprocess)))

    @cached_property
    def former_spaces(self) -> tuple[Space, ...]:
        """What earlier versions called the space of the same vectors; made when it is asked for."""
        from fourm_lite.embedders.former import former_texts

        texts = former_texts(self.preprocess)
        return tuple(Space(self.label, self.dim, self._fingerprint(text)) for text in texts)

    @cached_property
    def _weights(self) -> str:
        return self._identity()

    def _fingerprint(self, preprocess: str) -> str:
        facts = {
            "weights": self._weights,
            "preprocess": preprocess,
            **{key: str(value) for key, value in self.facts.items()},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def embed_image(
        self,
        images: PictureSource | Iterable[PictureSource],
        batch_size: int = 32,
        *,
        normalize: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> Vectors:
        """One vector a picture; `normalize=False` gives the raw vectors that tokenizers want.

        Shapes:
            images: PIL pictures, paths, bytes, uint8[H, W, 3] arrays or uint8[3, H, W] tensors, all
                opened as `modalities.pictures.decode` does
            returns: float32[N, E], unit length unless `normalize=False`
        Raises:
            FourMError: the network reads no pictures, a picture cannot be opened, or a vector is
                NaN, infinite or zero
            ShapeError: the width changes between batches
        """
        tower = self.towers.image or self._refuse("pictures", "image")
        chunks = _chunks(_listed(images), batch_size)
        vectors = (self._run(tower, self._opened(chunk)) for chunk in chunks)
        return self._collect(vectors, normalize, progress)

    def embed_text(
        self,
        texts: str | Iterable[str],
        batch_size: int = 32,
        *,
        normalize: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> Vectors:
        """One vector a text, in the space of `embed_image`.

        Raises:
            FourMError: the network reads no text, or a vector is NaN, infinite or zero
        """
        tower = self.towers.text or self._refuse("text", "text")
        chunks = _chunks([texts] if isinstance(texts, str) else texts, batch_size)
        vectors = (self._run_texts(tower, [_as_text(t) for t in chunk]) for chunk in chunks)
        return self._collect(vectors, normalize, progress)

    @torch.inference_mode()
    def embed_patches(
        self, images: PictureSource | Iterable[PictureSource], batch_size: int = 32
    ) -> Vectors:
        """The feature map of each picture, raw.

        Shapes:
            returns: float32[N, L, E], row by row from the top left, without class tokens
        """
        tower = self.towers.patches or self._refuse("feature maps", "patches")
        maps: list[Vectors] = []
        for chunk in _chunks(_listed(images), batch_size):
            found = as_patches(self._called(tower, self._opened(chunk)))
            maps.append(found.float().cpu().numpy())
            if maps[-1].shape[1:] != maps[0].shape[1:]:
                raise ShapeError(
                    f"'{self.name}' gave feature maps of {maps[0].shape[1:]} and then "
                    f"{maps[-1].shape[1:]}; embed pictures of one size together"
                )
        return np.concatenate(maps) if maps else np.zeros((0, 0, self.dim), np.float32)

    def _opened(self, images: Iterable[Any]) -> list[Any]:
        if self._read is not decode:
            return [self._read(image) for image in images]
        return [
            decode(image, short_side=self.short_side if _is_file(image) else None)
            for image in images
        ]

    @torch.inference_mode()
    def _run_texts(self, tower: Callable[[list[Any]], Any], texts: list[str]) -> Vectors:
        with threads_for(TEXT_ROWS * len(texts)):
            return self._run(tower, texts)

    @torch.inference_mode()
    def _run(self, tower: Callable[[list[Any]], Any], items: list[Any]) -> Vectors:
        vectors = as_vectors(self._called(tower, items)).float().cpu().numpy()
        if len(vectors) != len(items):
            raise ShapeError(
                f"'{self.name}' was given {len(items)} items and gave {len(vectors)} vectors; "
                f"it must give one vector an item"
            )
        return vectors

    def _called(self, tower: Callable[[list[Any]], Any], items: list[Any]) -> Any:
        """What the network makes of a batch; an exception of its own becomes one of ours.

        Raises:
            FourMError: the network cannot take these items, whatever it raises
        """
        told = f"'{self.name}' fails on {len(items)} items ({{error}})"
        with foreign_errors(FourMError, f"{told}; does its configuration fit its weights?"):
            return tower(items)

    def _collect(
        self,
        chunks: Iterable[Vectors],
        normalize: bool,
        progress: Callable[[int], object] | None,
    ) -> Vectors:
        done: list[Vectors] = []
        count = 0
        for vectors in chunks:
            self._check(vectors, count)
            done.append(unit_length(vectors, first=count) if normalize else vectors)
            count += len(vectors)
            if progress is not None:
                progress(count)
        return np.concatenate(done) if done else np.zeros((0, self.dim), np.float32)

    def _check(self, vectors: Vectors, start: int) -> None:
        width = self.__dict__.setdefault("dim", vectors.shape[1])  # what `dim` will answer
        if vectors.shape[1] != width:
            raise ShapeError(
                f"'{self.name}' gave width {width} before and width {vectors.shape[1]} "
                f"from item {start} on; an embedder must keep one width"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise FourMError(
                f"'{self.name}' gave NaN or infinite values for item {start + int(bad.argmax())}; "
                f"nothing was kept. Look at that picture or text and at the network's precision"
            )

    def _refuse(self, what: str, kind: str) -> NoReturn:
        raise FourMError(
            f"'{self.name}' cannot embed {what} ({kind}); it embeds {', '.join(self.can)}. "
            f"Use a dual encoder (for example hf:openai/clip-vit-base-patch32), or generate the "
            f"vector with a 4M model"
        )


def unit_length(vectors: Vectors, *, first: int = 0) -> Vectors:
    """Vectors scaled to length 1.

    Raises:
        FourMError: a vector is zero and has no direction
    """
    zero = lengths(vectors) == 0
    if zero.any():
        raise FourMError(
            f"the vector of item {first + int(zero.argmax())} is zero and has no "
            f"direction; ask for raw vectors with normalize=False or leave the item out"
        )
    return unit(vectors)


def fingerprint_module(module: nn.Module) -> str:
    """Hash of a module's weights: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def sampled_fingerprint(module: nn.Module, values: int = 1024) -> str:
    """Hash of a module's names, shapes and types, and of some values in the middle of each tensor.

    Training changes a tensor everywhere, so trainings are told apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        some = flat[max(0, (len(flat) - values) // 2) :][:values].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()


def _listed(images: Any) -> Iterable[Any]:
    # One picture is an item, not a list of rows: arrays of rank 2 and 3, paths and PIL pictures.
    single = (
        isinstance(images, str | bytes)
        or hasattr(images, "__fspath__")
        or hasattr(images, "convert")
    )
    if single or (isinstance(images, np.ndarray | Tensor) and images.ndim <= 3):
        return [images]
    return images


def _chunks(items: Iterable[Value], size: int) -> Iterator[list[Value]]:
    check_most(1 << 20, batch_size=size)
    if size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {size}")
    try:
        iterator = iter(items)
    except TypeError as error:
        raise ConfigError(
            f"expected one picture or text, or a list of them, got {type(items).__name__}"
        ) from error
    while chunk := list(islice(iterator, size)):
        yield chunk


def _as_text(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"embed_text expects strings, got {type(text).__name__}: {text!r}")
    return text


def _is_file(image: Any) -> bool:
    return isinstance(image, str | bytes) or hasattr(image, "__fspath__")
