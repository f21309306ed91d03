"""Vectors for texts without photos: what a ridge regression from words says, as labels.

The regression learns from photos with captions whose vectors a teacher made before. Its answer is a
direction; it is given the length that photos have on average, so that a tokenizer knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.data.pseudolabel import CROPS, LabelRun, claim, read_labels, write_npz
from fourm_lite.data.shards import aligned
from fourm_lite.data.sources import Record
from fourm_lite.data.word_ridge import ridge_from_words
from fourm_lite.errors import FourMError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """Captions and the vectors that go with them.

    Shapes:
        vectors: float32[len(captions), E]
    """

    captions: Sequence[str]
    vectors: Floats

    @classmethod
    def read(cls, labels: Path, name: str, records: Sequence[Record]) -> Said:
        """The captions of records, each with its photo's label `name` (of the first crop).

        Raises:
            FourMError: there is no such label, it is no vector, or no record has a caption
        """
        spoken = [r for r in records if r.captions]
        if not spoken:
            raise FourMError("a regression from words needs photos with captions, found none")
        ids, values = read_labels(labels, name)
        if values.ndim != 3:
            raise FourMError(f"expected vectors, the label {name!r} is {list(values.shape[2:])}")
        rows = aligned(ids, [r.id for r in spoken], values)[:, 0].astype(np.float32)
        counts = [len(r.captions) for r in spoken]
        return cls([c for r in spoken for c in r.captions], np.repeat(rows, counts, axis=0))


def vectors_of_texts(texts: Sequence[str], said: Said) -> Floats:
    """What the words of texts say: the mean vector plus a predicted direction of usual length.

    Shapes:
        returns: float32[len(texts), E]
    """
    mean = said.vectors.mean(axis=0)
    centred = said.vectors - mean
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    found = ridge_from_words(said.captions, centred / np.maximum(lengths, 1e-12), texts)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    made: Floats = (mean + found * lengths.mean()).astype(np.float32)
    return made


def label_texts(
    records: Sequence[Record], name: str, said: Said, out: Path, *, shard_size: int = 2048
) -> None:
    """Writes the label `name` of texts as `pseudolabel` writes that of photos; their crop is empty.

    Raises:
        FourMError: a record has no caption
        ConfigError: `out` was begun with other texts
    """
    silent = [r.id for r in records if not r.captions]
    if silent:
        raise FourMError(f"{len(silent)} records have no caption, such as {silent[0]!r}")
    claim(Path(out), records, LabelRun(shard_size=shard_size))
    values = vectors_of_texts([r.captions[0] for r in records], said)[:, None]
    whole: npt.NDArray[Any] = np.zeros((len(records), 1, 5), np.int64)
    for number, start in enumerate(range(0, len(records), shard_size)):
        part = slice(start, start + shard_size)
        ids = np.array([r.id for r in records[part]])
        shard = f"shard-{number:05d}.npz"
        write_npz(Path(out) / name / shard, ids=ids, values=values[part])
        write_npz(Path(out) / CROPS / shard, ids=ids, values=whole[part])
