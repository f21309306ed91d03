"""Tokens on disk in 4M's form, and the samples made of them, of captions and of photos.

A token file is `<id>.npy`, int16 [crops, tokens] (int32 for vocabularies above 32768); files lie in
`<root>/<modality>/shard-00000.tar`, and `<root>/crop_settings` says where each crop was cut.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.data.label_rows import LabelRows
from fourm_lite.data.masking import Chunks, Sample
from fourm_lite.errors import FourMError, ReadError, ShapeError
from fourm_lite.io.files import replacing
from fourm_lite.modalities.crops import cut_pixels, from_settings
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD, Crop
from fourm_lite.names import shown
from fourm_lite.photos.item import places_of
from fourm_lite.photos.records import Record
from fourm_lite.reading.arrays import npy_bytes, read_npy
from fourm_lite.reading.regular import budget
from fourm_lite.reading.tars import read_tar
from fourm_lite.tokenization.vq.randomness import RandomSource

CROPS = "crop_settings"
KEPT = "the finished shards are kept, and the same command goes on from them"
_CAPTIONS = 1 << 16  # whose tokens are kept, about 20 MB
Array = npt.NDArray[Any]
Writer = Callable[[int, int, RandomSource], Chunks | None]
"""What a sequence modality says of record i, crop k, as chunks of token ids; None: nothing."""


def token_path(root: Path, folder: str, number: int) -> Path:
    """The file of one shard of one modality."""
    return Path(root) / folder / f"shard-{number:05d}.tar"


def write_shard(path: Path, ids: Sequence[str], tokens: Array) -> None:
    """Writes one shard, int16 where the numbers fit: int[n, crops, ...]."""
    small = tokens.size == 0 or int(tokens.max()) < 2**15
    stored = tokens.astype(np.int16 if small else np.int32)
    files = ((f"{_quoted(i)}.npy", npy_bytes(row)) for i, row in zip(ids, stored, strict=True))
    write_tar(path, files)


def read_tokens(root: Path, folder: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """All tokens of one modality: ids, and int64[N, crops, ...].

    Raises:
        FourMError: there are none
    """
    paths = sorted((Path(root) / folder).glob("shard-*.tar"))
    if not paths:
        raise FourMError(
            f"expected token shards in {Path(root) / folder}; make them with `fourm-lite tokenize`"
        )
    parts = [read_shard(path) for path in paths]
    return [i for ids, _ in parts for i in ids], np.concatenate([rows for _, rows in parts])


def read_shard(path: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """One shard: ids, and int64[n, crops, ...].

    Raises:
        FourMError: the tar cannot be read, or holds something else than arrays
    """
    ids, rows = [], []
    for sample in read_tars({"npy": path}):
        try:
            rows.append(read_npy(sample.files["npy"]))
        except (KeyError, FourMError) as error:
            raise FourMError(f"{path}: {sample.key!r} holds no .npy array: {error}") from error
        ids.append(_unquoted(sample.key))
    return ids, np.stack(rows).astype(np.int64)


def _quoted(name: str) -> str:
    """An id without dots: in a tar of 4M's form the name of a sample ends at its first dot."""
    return name.replace("%", "%25").replace(".", "%2E")


def _unquoted(name: str) -> str:
    return name.replace("%2E", ".").replace("%25", "%")


def aligned(found: tuple[Sequence[str], Array], wanted: Sequence[str]) -> Array:
    """What was found, ids and values, in the order of `wanted`: the values alone.

    Raises:
        FourMError: an id is missing, or stands twice
    """
    ids, values = found
    place = places_of(ids, "these labels or tokens")
    missing = [name for name in wanted if name not in place]
    if missing:
        raise FourMError(f"{len(missing)} samples have no values, such as {missing[0]!r}")
    out: Array = values[[place[name] for name in wanted]]
    return out


def normalized(image: Any) -> Tensor:
    """A PIL picture as the model reads it: float32[3, H, W] by ImageNet's mean and deviation."""
    return by_imagenet(torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).contiguous())


def by_imagenet(pixels: Tensor) -> Tensor:
    """Bytes as the model reads them: uint8[3, H, W] -> float32[3, H, W]."""
    mean, std = (torch.tensor(c)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, kw_only=True)
class AlignedSamples:
    """Photos with their tokens, texts and pixels; one crop is drawn and all modalities follow it.

    A record without a photo, or without a caption, gives what it has.

    Units:
        tokens: grid modality -> int64[N, crops, L], in the order of `records`
        settings: int64[N, crops, 5]; None: photos are read whole
        texts: sequence modality -> what it says
        pixels: pixel modality -> side in pixels
        labels: what a teacher made: name -> [N, crops, ...], read where it is asked for
        features: of a features modality: name -> [N, crops, E] or [N, crops, L, E]
    """

    records: Sequence[Record]
    tokens: Mapping[str, Array] = field(default_factory=dict)
    settings: Array | None = None
    texts: Mapping[str, Writer] = field(default_factory=dict)
    pixels: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, LabelRows] = field(default_factory=dict)
    features: Mapping[str, LabelRows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that all tables agree."""
        counts = {name: values.shape[:2] for name, values in self.tokens.items()}
        rows = {**self.labels, **self.features}
        counts |= {name: values.shape[:2] for name, values in rows.items()}
        if self.settings is not None:
            counts[CROPS] = self.settings.shape[:2]
        if len(set(counts.values())) > 1 or any(c[0] != len(self.records) for c in counts.values()):
            raise ShapeError(
                f"all tables need [{len(self.records)} records, the same crops], got {counts}"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and of what is known of them."""
        names = sorted((*self.tokens, *self.texts, *self.pixels, *self.labels, *self.features))
        text = "\n".join([*names, str(self.num_crops), *(r.id for r in self.records)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def names(self) -> frozenset[str]:
        """The modalities that some of the samples have."""
        pixels = self.pixels if any(r.has_photo for r in self.records) else ()
        return frozenset((*self.tokens, *self.texts, *pixels, *self.labels, *self.features))

    @property
    def num_crops(self) -> int:
        """Crops of each photo."""
        rows = (*self.labels.values(), *self.features.values())
        tables: list[Any] = [*self.tokens.values(), *rows]
        tables += [] if self.settings is None else [self.settings]
        return tables[0].shape[1] if tables else 1

    def sample(self, index: int, names: Sequence[str], source: RandomSource) -> Sample:
        """The named modalities of one sample, through one crop of it."""
        return self.at(index, source.below(self.num_crops), names, source)

    def at(self, index: int, crop: int, names: Sequence[str], source: RandomSource) -> Sample:
        """The named modalities of one crop; those it does not have are left out."""
        out: dict[str, Any] = {}
        for name in names:
            if name in self.tokens:
                out[name] = torch.from_numpy(self.tokens[name][index, crop].astype(np.int64))
            elif name in self.texts:
                text = self.texts[name](index, crop, source)
                out |= {} if text is None else {name: text}
            elif name in self.pixels and self.records[index].has_photo:
                out[name] = by_imagenet(self.photo(index, crop, self.pixels[name]))
            elif name in self.features:
                value = torch.from_numpy(self.features[name].at(index, crop)).float()
                out[name] = value[None] if value.ndim == 1 else value
            elif name in self.labels:
                out[name] = torch.from_numpy(self.labels[name].at(index, crop)).float()
        return out

    def photo(self, index: int, crop: int, size: int) -> Tensor:
        """One crop of one photo: uint8[3, size, size]."""
        image = self.records[index].open_image()
        if self.settings is None:
            where = Crop(top=0, left=0, height=image.height, width=image.width, size=size)
        else:
            where = from_settings(self.settings[index, crop : crop + 1], size)[0]
        return cut_pixels(image, where)


def caption_writer(records: Sequence[Record], encode: Callable[[str], list[int]]) -> Writer:
    """Says one of the captions of a photo, drawn anew each time."""
    known = lru_cache(_CAPTIONS)(encode)

    def write(index: int, crop: int, source: RandomSource) -> Chunks | None:
        captions = records[index].captions
        return [[i] for i in known(captions[source.below(len(captions))])] if captions else None

    return write


@dataclass(frozen=True)
class TarSample:
    """The files of one sample of a tar: modality -> bytes; `key` is its name without an ending."""

    key: str
    files: Mapping[str, bytes]


def read_tars(paths: Mapping[str, Path]) -> Iterator[TarSample]:
    """Samples of aligned tars, one a modality, read in lock-step.

    A single tar may hold several modalities; then its files are told apart by their endings and
    `paths` has one entry whose name is used for a lone file.

    Raises:
        FourMError: a tar is missing or broken, or the keys disagree
    """
    streams = {modality: _tar_groups(Path(path)) for modality, path in paths.items()}
    for row in itertools.zip_longest(*streams.values()):
        if any(group is None for group in row):
            raise FourMError(f"the shards {_names(paths)} differ in length; pack them again")
        keys = {group[0] for group in row if group is not None}
        if len(keys) > 1:
            raise FourMError(
                f"the shards {_names(paths)} disagree: keys {sorted(keys)} side by side"
            )
        files: dict[str, bytes] = {}
        for modality, group in zip(streams, row, strict=True):
            assert group is not None
            one = len(group[1]) == 1
            files |= {modality if one else ending: data for ending, data in group[1].items()}
        yield TarSample(keys.pop(), files)


def _names(paths: Mapping[str, Path]) -> str:
    return ", ".join(str(p) for p in paths.values())


def _tar_groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    try:
        for key, members in itertools.groupby(read_tar(path), key=lambda m: _split_key(m.name)[0]):
            group: dict[str, bytes] = {}
            for member in members:
                if member.refused:
                    raise FourMError(f"the shard {path}: {shown(member.name)}: {member.refused}")
                group[_split_key(member.name)[1]] = member.data
                if sum(map(len, group.values())) > budget().bytes:
                    raise FourMError(f"the sample {shown(key)} of the shard {path} is too large")
            yield key, group
    except ReadError as error:
        raise FourMError(f"cannot read the shard {path}: {error}") from error


def _split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` -> ("a/b", "seg.png"): a key ends at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending


def write_tar(path: Path, samples: Iterable[tuple[str, bytes]]) -> None:
    """Writes named files to a tar, whole or not at all; the same bytes for the same files."""
    with replacing(path, kept=KEPT) as draft, tarfile.open(draft, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
