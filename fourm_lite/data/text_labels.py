"""Vectors for texts by a ridge regression from words, as labels.

The regression learns from photos with captions whose vectors a teacher made before. Its answer is a
direction; it is given the length that photos have on average, so that a tokenizer knows it.

A caption of one of those photos is answered by a regression that has not seen the photo: a model
that learns from these answers learns what words mean, where the photo's own vector would have it
learn the captions by heart. Part of a second opinion can be mixed in.

The best guess of a vector is the mean of all that fit, and has most of its length in the few
directions that photos differ in most. For a search, which asks what tells one photo from the
others, its length is better shared out among more of them: it is whitened in part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.data.label_rows import CONTENT, lacks, read_vectors
from fourm_lite.data.labellers import NetworkLabeller
from fourm_lite.data.linear import ridge_from_words
from fourm_lite.data.pseudolabel import LabelRun, claim, claim_labels
from fourm_lite.data.shards import CROPS, aligned
from fourm_lite.data.unread import usable
from fourm_lite.errors import FourMError
from fourm_lite.io.files import write_npz
from fourm_lite.photos.records import Record
from fourm_lite.progress import Progress
from fourm_lite.unit import Floats, unit

Opinion = Callable[[Sequence[str]], Floats]
FOLDS = 5
_LEAST = 1e-3
"""Variances below this share of the largest count as it, where vectors are whitened."""


@dataclass(frozen=True)
class CaptionVectors:
    """Captions and the vectors that go with them.

    Shapes:
        vectors: float32[len(captions), E]
        photos: int64[len(captions)], the number of each caption's photo
    """

    captions: Sequence[str]
    vectors: Floats
    photos: npt.NDArray[np.int64]

    @classmethod
    def read(cls, labels: Path, name: str, records: Sequence[Record]) -> CaptionVectors:
        """The captions of records, each with its photo's label `name` (of the first crop).

        Raises:
            FourMError: there is no such label, it is no vector, or no record has a caption
        """
        spoken = [r for r in records if r.captions]
        if not spoken:
            raise FourMError("a regression from words needs photos with captions, found none")
        found = read_vectors(labels, name)
        spoken = usable(spoken, set(found[0]))
        rows = aligned(found, [r.id for r in spoken])[:, 0].astype(np.float32)
        counts = [len(r.captions) for r in spoken]
        which = np.repeat(np.arange(len(spoken)), counts)
        return cls([c for r in spoken for c in r.captions], rows[which], which)

    @property
    def mean(self) -> Floats:
        """The mean vector: float32[E]."""
        made: Floats = self.vectors.mean(axis=0)
        return made

    @property
    def length(self) -> float:
        """How far photos are from the mean, on average."""
        return float(np.linalg.norm(self.vectors - self.mean, axis=1).mean())

    def directions(self) -> Floats:
        """The vectors less their mean, of unit length."""
        return unit(self.vectors - self.mean)

    def whitened(self, found: Floats, power: float) -> Floats:
        """Directions less along what photos vary in most: by their variance to the minus `power`.

        Shapes:
            found: float32[N, E]; returns the same, of unit length
        Units:
            power: 0 changes nothing, 0.5 makes all variances of photos alike
        """
        if not power:
            return found
        photos = self.directions()[np.unique(self.photos, return_index=True)[1]]
        return unit(found @ whitening(photos, power))


def whitening(photos: Floats, power: float) -> Floats:
    """What whitens directions in part: the variance of photos along each axis to the minus `power`.

    Shapes:
        photos: float32[N, E], centred; returns float32[E, E], symmetric
    """
    variance, axes = np.linalg.eigh(photos.T @ photos / len(photos))
    share = np.maximum(variance, 0.0) / variance.max() + _LEAST
    made: Floats = ((axes * share**-power) @ axes.T).astype(np.float32)
    return made


def regressed(texts: Sequence[str], known: CaptionVectors) -> Floats:
    """The direction that the words of each text have: float32[len(texts), E], of unit length."""
    return unit(ridge_from_words(known.captions, known.directions(), texts))


def regressed_apart(known: CaptionVectors, folds: int = FOLDS) -> Floats:
    """The same for the captions themselves, each by a regression that has not seen its photo.

    Raises:
        FourMError: there are fewer photos than folds
    """
    count = len(set(known.photos.tolist()))
    if count < folds:
        raise FourMError(f"expected at least {folds} photos with captions, found {count}")
    made, directions = np.empty_like(known.vectors), known.directions()
    fold = known.photos % folds
    for k in range(folds):
        own = fold == k
        others = [c for c, mine in zip(known.captions, own, strict=True) if not mine]
        asked = [c for c, mine in zip(known.captions, own, strict=True) if mine]
        made[own] = ridge_from_words(others, directions[~own], asked)
    return unit(made)


def vectors_of_texts(
    texts: Sequence[str],
    known: CaptionVectors,
    *,
    opinion: Opinion | None = None,
    share: float = 0.0,
    power: float = 0.0,
) -> Floats:
    """What the words of texts say: the mean vector plus a predicted direction of usual length.

    Shapes:
        returns: float32[len(texts), E]
    Units:
        opinion: a second one, vectors float32[len(texts), E] of texts
        share: its weight beside the regression, 0..1
        power: of `CaptionVectors.whitened`
    """
    second = opinion(texts) if opinion is not None and share else None
    return _made(regressed(texts, known), second, known, share, power)


def vectors_of_captions(known: CaptionVectors, *, share: float = 0.0, power: float = 0.0) -> Floats:
    """The same for the captions that the regression learns from, by `regressed_apart`.

    Shapes:
        returns: float32[len(known.captions), E]
    Units:
        share: weight of the photo's own vector, the second opinion here
        power: of `CaptionVectors.whitened`
    """
    return _made(regressed_apart(known), known.vectors, known, share, power)


def _made(
    found: Floats, second: Floats | None, known: CaptionVectors, share: float, power: float
) -> Floats:
    if second is not None and share:
        found = unit((1 - share) * found + share * unit(second - known.mean))
    made: Floats = (known.mean + known.whitened(found, power) * known.length).astype(np.float32)
    return made


def label_texts(
    records: Sequence[Record], name: str, vectors: Floats, out: Path, *, shard_size: int = 2048
) -> None:
    """Writes the label `name` of texts as `pseudolabel` writes that of photos; their crop is empty.

    Shapes:
        vectors: float32[len(records), E]
    Raises:
        ConfigError: `out` was begun with other texts
    """
    claim(Path(out), records, LabelRun(shard_size=shard_size))
    for number, start in enumerate(range(0, len(records), shard_size)):
        part = slice(start, start + shard_size)
        _write_shard(Path(out), name, number, records[part], vectors[part])


def _write_shard(
    out: Path, name: str, number: int, records: Sequence[Record], vectors: Floats, **note: Any
) -> None:
    shard, ids = f"shard-{number:05d}.npz", np.array([r.id for r in records])
    write_npz(out / name / shard, {"ids": ids, "values": vectors[:, None], **note})
    nothing = np.zeros((len(records), 1, 5), np.int64)
    write_npz(out / CROPS / shard, {"ids": ids, "values": nothing})


def label_by_encoder(
    records: Sequence[Record],
    labeller: NetworkLabeller,
    out: Path,
    *,
    shard_size: int = 2048,
    progress: Progress | None = None,
) -> None:
    """Writes what a network makes of texts as a label; shards that are there are not made again.

    Units:
        records: texts, one caption each; labeller: its `run` takes texts in place of pictures
    Raises:
        ConfigError: `out` was begun with other texts, or the label by another network
    """
    claim(Path(out), records, LabelRun(shard_size=shard_size))
    claim_labels(Path(out), [labeller])
    for number, start in enumerate(range(0, len(records), shard_size)):
        part = records[start : start + shard_size]
        path = Path(out) / labeller.name / f"shard-{number:05d}.npz"
        texts = [r.captions[0] for r in part]
        now = np.array([hashlib.blake2b(t.encode(), digest_size=8).hexdigest() for t in texts])
        if lacks(path, now):
            vectors = labeller.run(texts).astype(np.float32)
            _write_shard(Path(out), labeller.name, number, part, vectors, **{CONTENT: now})
        if progress is not None:
            progress(start + len(part), len(records))
