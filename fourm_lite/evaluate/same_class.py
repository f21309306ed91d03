"""Search for photos of the same class by the GPR1200 protocol, on photos with labels.

Every photo asks for the others of its class; the figure is the mean average precision. Photos that
cannot be read, and classes with one photo, are left out and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.caption_sets import space_facts
from fourm_lite.finetune.pixels import readable
from fourm_lite.metrics.ranking import same_class_retrieval
from fourm_lite.photos.labelled import LabelledSet, read_labelled
from fourm_lite.progress import StageProgress
from fourm_lite.search.spaces import Space

ALL = "all"


def evaluate_same_class(
    space: Space,
    folder: str | Path,
    split: str = "test",
    *,
    batch_size: int = 32,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """mAP, R@K, MRR and nDCG with intervals, as `evaluate same-class` writes it.

    Args:
        space: from `open_space`; its gallery says who embeds the photos
        folder: with labels.jsonl, or a folder of classes; see `photos.labelled`
        split: which of its photos; "all" for all of them
        batch_size: photos embedded together
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Raises:
        ConfigError: photos of several labels, or no class with two photos
    """
    photos = readable(read_labelled(folder, split=None if split == ALL else split))
    if photos.multi_label:
        raise ConfigError("the same-class protocol is for one label a photo")
    rows, alone = _with_others(photos)
    vectors = _embedded(space, photos, rows, batch_size, progress)
    labels = [photos.classes[int(photos.labels[i])] for i in rows]
    protocol = {
        "split": split,
        "data": str(folder),
        **space_facts(space),
        "skipped": [vars(skip) for skip in photos.skipped],
        "left_out_alone_in_class": alone,
        **(facts or {}),
    }
    return same_class_retrieval(vectors, labels, protocol=protocol, draws=draws)


def _with_others(photos: LabelledSet) -> tuple[list[int], list[str]]:
    """Numbers of photos whose class has another photo, and the ids of those without."""
    labels = photos.labels.tolist()
    count = Counter(labels)
    rows = [i for i, label in enumerate(labels) if count[label] > 1]
    if not rows:
        raise ConfigError("no class has two readable photos, so there is nothing to find")
    return rows, [photos.photos[i].record.id for i, c in enumerate(labels) if count[c] == 1]


def _embedded(
    space: Space,
    photos: LabelledSet,
    rows: list[int],
    batch_size: int,
    progress: StageProgress | None,
) -> Any:
    parts = []
    for start in range(0, len(rows), batch_size):
        some = [photos.photos[i].record.open_image() for i in rows[start : start + batch_size]]
        parts.append(space.encode_document(some, batch_size=batch_size)[0])
        if progress is not None:
            progress("photos", start + len(some), len(rows))
    return np.concatenate(parts)
