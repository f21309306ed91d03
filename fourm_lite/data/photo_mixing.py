"""Mixtures of two photos: pictures that no photo list holds, for a teacher to label.

A network that learns what another says of a few thousand photos soon knows these by heart. Two of
them blended, or a piece of one in the other, is a picture that it has not seen, and the teacher
says something of it as well. `pseudolabel`, `tokenize` and `train` read a list of mixtures like a
list of photos.

Source:
    Knowledge distillation: a good teacher is patient and consistent (Beyer et al. 2022); mixup
    (Zhang et al. 2018); CutMix (Yun et al. 2019)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import remove_leftovers, write_whole
from fourm_lite.modalities.crops import KEY, CropPolicy, Mix, random_crop, relative
from fourm_lite.progress import Progress

if TYPE_CHECKING:
    from fourm_lite.photos.records import Record

_BLENDED, _PASTED = (0.2, 0.5), (0.2, 0.6)  # the second photo's share of the light, of the area


@dataclass(frozen=True)
class Mixing:
    """How mixtures are drawn.

    Units:
        blended: share of mixtures whose photos are blended; the others have a piece pasted in
    """

    policy: CropPolicy
    blended: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses a share outside of 0..1."""
        if not 0 <= self.blended <= 1:
            raise ConfigError(f"blended is a share within 0..1, got {self.blended}")


def mixtures(records: Sequence[Record], count: int, mixing: Mixing) -> Iterator[tuple[Record, Mix]]:
    """`count` mixtures, their first photo and how the second joins; each by its number alone.

    Every photo is the first of as many mixtures as any other, give or take one.

    Raises:
        ConfigError: fewer than two photos, a mixture among them, or a photo that is no file
    """
    photos = [r for r in records if r.has_photo]
    if len(photos) < 2:
        raise ConfigError(f"a mixture needs two photos, the list has {len(photos)}")
    order = np.arange(len(photos))
    for number in range(count):
        turn, place = divmod(number, len(photos))
        if place == 0:
            order = np.random.default_rng((mixing.seed, turn)).permutation(len(photos))
        rng = np.random.default_rng((mixing.seed, turn, place))
        first = photos[order[place]]
        second = photos[(order[place] + rng.integers(1, len(photos))) % len(photos)]
        yield first, _drawn(first, second, mixing, rng)


def _drawn(first: Record, second: Record, mixing: Mixing, rng: np.random.Generator) -> Mix:
    crops = []
    for record in (first, second):
        if record.mix is not None:
            raise ConfigError(f"{record.id!r} is a mixture itself; give a list of photos")
        if not isinstance(record.image, Path):
            raise ConfigError(
                f"mixtures name files, {record.id!r} comes with its list; unpack the photos first"
            )
        image = record.open_image()
        crops.append(random_crop(image.height, image.width, mixing.policy, rng))
    assert isinstance(second.image, Path)
    pair = (crops[0], crops[1])
    if rng.random() < mixing.blended:
        return Mix(second.image, pair, share=round(float(rng.uniform(*_BLENDED)), 3))
    return Mix(second.image, pair, box=_piece(mixing.policy, rng))


def _piece(policy: CropPolicy, rng: np.random.Generator) -> tuple[int, ...]:
    """A rectangle of the result, left, top, right and bottom."""
    area = rng.uniform(*_PASTED)
    ratio = policy.draw_ratio(rng)
    width = min(policy.size, max(1, round(policy.size * math.sqrt(area * ratio))))
    height = min(policy.size, max(1, round(policy.size * math.sqrt(area / ratio))))
    left = int(rng.integers(policy.size - width + 1))
    top = int(rng.integers(policy.size - height + 1))
    return (left, top, left + width, top + height)


def write_mixtures(
    records: Sequence[Record],
    out: Path,
    count: int,
    mixing: Mixing,
    *,
    split: str = "train",
    progress: Progress | None = None,
) -> None:
    """Writes a JSONL list of mixtures; its paths are relative to it. Whole or not at all.

    Raises:
        as `mixtures`
    """
    lines = []
    for number, (first, mix) in enumerate(mixtures(records, count, mixing)):
        assert isinstance(first.image, Path)  # `mixtures` takes no other
        row = {"file": relative(out.parent, first.image), KEY: mix.row(out.parent)}
        # The hash makes the ids, and with them a run's fingerprint, tell these from others.
        digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8]
        named = {"id": f"mix-{number:06d}-{digest}", "split": split, **row}
        lines.append(json.dumps(named) + "\n")
        if progress is not None:
            progress(number + 1, count)
    remove_leftovers(out.parent)
    write_whole(out, "".join(lines))
