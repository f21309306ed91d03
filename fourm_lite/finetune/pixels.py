"""Labelled photos as pixels: cut, augmented, in batches that are a function of the step."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.backbone.vit import FMViT
from fourm_lite.data.unread import Replaced
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.array_codecs import RasterCodec
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.crops import CropPolicy, random_crop
from fourm_lite.modalities.pixel_codecs import ImageCodec
from fourm_lite.modalities.spec import IMAGENET_MEAN, Crop
from fourm_lite.photos.labelled import LabelledSet, Photo, Skip
from fourm_lite.photos.records import UnreadablePhotoError
from fourm_lite.progress import batches

CODEC = ImageCodec(normalization="imagenet")
PhotoCodec = ImageCodec | RasterCodec
_GLOBAL_NOISE = threading.Lock()
_POLICY = re.compile(
    r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?|t\w*))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PhotoAugment:
    """How training photos are varied.

    Units:
        scale: smallest share of the picture's area that a crop keeps; 1 with no flip is the centre
        auto: a policy of timm ("rand-m9-mstd0.5-inc1"), or "" for none
    Raises:
        ConfigError: `auto` is no such policy
    """

    scale: float = 0.35
    hflip: float = 0.5
    auto: str = ""

    def __post_init__(self) -> None:
        """Refuses what timm would stop at in the middle of a run."""
        if self.auto and not _POLICY.fullmatch(self.auto):
            raise ConfigError(
                "an augmentation is 'rand' with m, n, p, mstd, mmax, inc or t behind dashes "
                "(rand-m9-mstd0.5-inc1), or 'original', 'originalr', 'v0', 'v0r' or '3a', alone or "
                f"with mstd (original-mstd0.5); got {self.auto!r}"
            )


@dataclass(frozen=True)
class ClassBatch:
    """Pixels float[B, C, H, W] with class numbers int64[B], or 0 and 1 a class float[B, K]."""

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> ClassBatch:
        """The same on another device."""
        return ClassBatch(self.pixels.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


def codec_for(model: FMViT) -> PhotoCodec:
    """How a model's photos become pixels: colours, or the bands of tiles."""
    own = codec_of(model.config.pixels) if model.config.has_pixels else CODEC
    return own if isinstance(own, RasterCodec) else CODEC


def open_photo(photo: Photo, codec: PhotoCodec) -> Any:
    """A picture, or the bands of a tile float32[C, H, W].

    Raises:
        UnreadablePhotoError: it is neither
    """
    if not isinstance(codec, RasterCodec):
        return photo.record.open_image()
    try:
        return codec.read(photo.record.read())
    except (OSError, ShapeError) as error:
        name = photo.record.id
        raise UnreadablePhotoError(f"cannot read the tile {name!r}: {error}", name) from error


def cut_photo(image: Any, crop: Crop, codec: PhotoCodec) -> Tensor:
    """A crop of what `open_photo` gave, as the model reads it."""
    return (
        codec.cut(image, crop)
        if isinstance(codec, RasterCodec)
        else codec.from_picture(image, crop)
    )


def _sides(image: Any) -> Size:
    if isinstance(image, Tensor):
        return image.shape[1], image.shape[2]
    return image.height, image.width


def read_pixels(photo: Photo, size: Size, codec: PhotoCodec = CODEC) -> Tensor:
    """The middle of one photo, float32[C, H, W]."""
    image = open_photo(photo, codec)
    return cut_photo(image, Crop.center(*_sides(image), size), codec)


def readable(data: LabelledSet, codec: PhotoCodec = CODEC) -> LabelledSet:
    """The set without the photos that cannot be read, which are listed as skipped.

    Raises:
        FourMError: no photo can be read
    """
    good, bad = [], list(data.skipped)
    for row, photo in enumerate(data.photos):
        try:
            open_photo(photo, codec)
            good.append(row)
        except FourMError as error:
            bad.append(Skip(photo.record.id, str(error)))
    if not good:
        raise FourMError(f"none of {len(data)} photos can be read; the first: {bad[0].why}")
    return replace(data.rows(good), skipped=tuple(bad))


def without(data: LabelledSet, left_out: Mapping[str, str]) -> LabelledSet:
    """The set without the photos of these ids, which are listed as skipped with their reasons."""
    good = [row for row, photo in enumerate(data.photos) if photo.record.id not in left_out]
    bad = [photo.record.id for photo in data.photos if photo.record.id in left_out]
    return replace(
        data.rows(good), skipped=(*data.skipped, *(Skip(name, left_out[name]) for name in bad))
    )


def center_batches(
    data: LabelledSet, size: Size, batch_size: int, codec: PhotoCodec = CODEC
) -> Iterator[Tensor]:
    """The middles of all photos in order, float32[b, C, H, W]."""
    for photos in batches(data.photos, batch_size):
        yield torch.stack([read_pixels(photo, size, codec) for photo in photos])


@dataclass(frozen=True, kw_only=True)
class PhotoStream:
    """Training batches: every photo once an epoch, or classes equally often (`balanced`)."""

    data: LabelledSet
    size: Size
    batch_size: int = 32
    augment: PhotoAugment = PhotoAugment()
    balanced: bool = False
    seed: int = 0
    codec: PhotoCodec = CODEC
    replaced: Replaced = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Begins with nothing lost; refuses what is for colours alone."""
        if self.augment.auto and isinstance(self.codec, RasterCodec):
            raise ConfigError(
                f"the augmentation {self.augment.auto!r} is for colours; tiles are cut and mirrored"
            )
        object.__setattr__(self, "replaced", Replaced(len(self.data)))

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; the last, smaller one is left out."""
        return max(1, len(self.data) // self.batch_size)

    @property
    def fingerprint(self) -> str:
        """Tells this data, in this order, from other data."""
        return f"{self.data.fingerprint}-{self.batch_size}-{self.balanced}-{self.seed}"

    def epoch(self, step: int) -> float:
        """Passes over the data before that step."""
        return step / self.per_epoch

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> ClassBatch:
        """The batch of a step for one of `world` processes."""
        number = step * world + rank
        rows = self._order(number // self.per_epoch)
        start = (number % self.per_epoch) * self.batch_size
        chosen = rows[start : start + self.batch_size]
        rng = np.random.default_rng((self.seed, 1, number))
        read = [
            self.replaced.read(row, lambda r: self._varied(self.data.photos[r], rng))
            for row in chosen
        ]
        labels = self.data.rows(row for row, _ in read).labels
        return ClassBatch(torch.stack([pixels for _, pixels in read]), labels)

    def _order(self, epoch: int) -> list[int]:
        rng = np.random.default_rng((self.seed, 0, epoch))
        if not self.balanced:
            return [int(row) for row in rng.permutation(len(self.data))]
        counts = self.data.counts.numpy()
        weights = np.array([1 / counts[p.classes[0]] for p in self.data.photos])
        rows = rng.choice(len(self.data), len(self.data), p=weights / weights.sum())
        return [int(row) for row in rows]

    def _varied(self, photo: Photo, rng: np.random.Generator) -> Tensor:
        image = open_photo(photo, self.codec)
        rule = CropPolicy(
            size=self.size[0], scale=(self.augment.scale, 1.0), hflip=self.augment.hflip
        )
        crop = replace(random_crop(*_sides(image), rule, rng), size=self.size)
        if self.augment.auto:
            image = _auto_augmented(image, self.augment.auto, int(rng.integers(2**31)))
        return cut_photo(image, crop, self.codec)


def _auto_augmented(image: Any, policy: str, seed: int) -> Any:
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    make = rand_augment_transform if policy.startswith("rand") else auto_augment_transform
    fill = tuple(round(255 * m) for m in IMAGENET_MEAN)
    with seeded_globals(seed):
        return make(policy, {"img_mean": fill})(image)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators follow a seed inside and are then put back.

    timm's augmentation and mixing draw from them and take no generator.
    """
    with _GLOBAL_NOISE:
        before = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def one_photo(path: str | Path) -> Photo:
    """A photo without a class, to be classified."""
    from fourm_lite.photos.records import Record

    return Photo(Record(str(path), Path(path)), ())


centre_batches = center_batches  # as notebooks of 0.1 spell it
