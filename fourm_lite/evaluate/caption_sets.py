"""Photos with captions, read from a folder and embedded, as an evaluation needs them.

The folder holds ``captions.jsonl`` with id, file, captions and split a line. Every caption is a
query of its own; a caption that is longer than the model reads is cut and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import Reads
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.metrics.measures import evenly
from fourm_lite.photos.records import CAPTIONS, Record, by_photo, read_caption_list
from fourm_lite.photos.sources import read_uri
from fourm_lite.progress import StageProgress, batches, of_stage
from fourm_lite.reading.regular import read_photo
from fourm_lite.search.calibration.answer_features import CaptionRelevance, Question, Vocabulary
from fourm_lite.search.calibration.calibrate import Judgements
from fourm_lite.search.calibration.captions import Captioned
from fourm_lite.search.index.index import Index
from fourm_lite.search.space import Codes, Inputs, Space
from fourm_lite.search.whitening import gallery_centre
from fourm_lite.unit import Floats

if TYPE_CHECKING:
    from PIL.Image import Image

AnySpace = TypeVar("AnySpace", bound=Space)


READ: dict[Reads, Callable[[Record], Any]] = {
    "pictures": Record.open_image,
    "regions": lambda record: record.id,
    "items": lambda record: record.image,
}
"""What a space takes of a record: its photo, the id of its regions, or its file as it is."""


@dataclass(frozen=True)
class CaptionPack:
    """Photos with captions.

    Shapes:
        owner: int64[T], the photo of each caption
    """

    photos: tuple[Record, ...]
    captions: tuple[str, ...]
    owner: npt.NDArray[np.int64]
    split: str
    without_caption: int = 0

    @classmethod
    def read(cls, folder: str | Path, split: str) -> CaptionPack:
        """One split of a folder; photos without a caption are counted and left out.

        Raises:
            FourMError: there is no list, or nothing in the split
        """
        place = Path(folder).expanduser()
        records = by_photo(read_caption_list(place / CAPTIONS, split=split))
        photos = [r for r in records if r.captions]
        if not photos:
            raise FourMError(f"no photo of the split {split!r} in {place} has a caption")
        return cls.of(photos, split, len(records) - len(photos))

    @classmethod
    def of(cls, photos: Sequence[Record], split: str, left_out: int = 0) -> CaptionPack:
        """Photos with all their captions; `left_out` had none."""
        owner = [i for i, photo in enumerate(photos) for _ in photo.captions]
        texts = [text for photo in photos for text in photo.captions]
        return cls(tuple(photos), tuple(texts), np.array(owner, np.int64), split, left_out)

    def subsample(self, limit: int | None) -> tuple[Record, ...]:
        """At most `limit` of the photos, drawn evenly; all of them for None."""
        return tuple(self.photos[i] for i in evenly(len(self.photos), limit))

    def read_by(self, reads: Reads, batch_size: int) -> Iterator[list[Any]]:
        """What a space reads of the photos, some at a time.

        Raises:
            FourMError: one cannot be opened
        """
        for part in batches(self.photos, batch_size):
            yield [READ[reads](photo) for photo in part]

    def pictures_at(self, part: slice) -> list[Image]:
        """Some of the photos."""
        return [photo.open_image() for photo in self.photos[part]]


@dataclass(frozen=True)
class Embedded:
    """A pack in a space.

    Shapes:
        images: float32[G, E], texts: float32[T, E], codes: int64[G, L] or None
    """

    pack: CaptionPack
    space: Space
    images: Floats
    texts: Floats
    codes: Codes | None
    items: tuple[Inputs, ...]
    cut: int


def embed_pack(
    pack: CaptionPack,
    space: Space,
    *,
    center: bool = True,
    batch_size: int = 32,
    progress: StageProgress | None = None,
) -> Embedded:
    """The photos and captions of a pack as vectors.

    Where the tokenizer has no mean and `center` is asked for, the gallery's own is taken off.
    """
    items, cut = caption_items(pack, space)  # refused by a model that reads none, before any work
    space, images, codes = embed_photos(
        pack, space, center=center, batch_size=batch_size, progress=progress
    )
    told = of_stage(progress, "captions")
    texts = space.encode_query(items, batch_size=batch_size, progress=told)
    return Embedded(pack, space, images, texts, codes, items, cut)


def embed_photos(
    pack: CaptionPack,
    space: AnySpace,
    *,
    center: bool = True,
    batch_size: int = 32,
    progress: StageProgress | None = None,
) -> tuple[AnySpace, Floats, Codes | None]:
    """The gallery of a pack, and the space with the centre that was used."""
    parts: list[Floats] = []
    for pictures in pack.read_by(space.reads, batch_size):
        parts.append(space.raw_documents(pictures))
        if progress is not None:
            progress("photos", sum(map(len, parts)), len(pack.photos))
    raw = np.concatenate(parts)
    if center and space.takes_centre and space.centre.mean is None:
        space = space.with_centre(gallery_centre(raw.mean(axis=1)))
    return space, space.compared(raw), space.codes(raw.mean(axis=1))


def caption_items(pack: CaptionPack, space: Space) -> tuple[tuple[Inputs, ...], int]:
    """A query for each caption, and how many captions were too long and cut."""
    return space.query_texts(pack.captions)


def protocol_of(data: Embedded, center: bool) -> dict[str, Any]:
    """What a figure must be quoted with."""
    space, pack = data.space, data.pack
    return {
        "protocol": "captions to photos and photos to captions, every caption a query",
        "split": pack.split,
        "photos": len(pack.photos),
        "photos_without_caption": pack.without_caption,
        "captions_cut": data.cut,
        "center": center and space.takes_centre,
        **space_facts(space),
    }


def space_facts(space: Space) -> dict[str, Any]:
    """Who made the vectors, and how they are compared."""
    facts: dict[str, Any] = {"space": space.name}
    facts |= {k: v for k, v in space.provenance().items() if k in ("model", "tokenizer")}
    return {**facts, **space.comparison()}


def captions_of(index: Index, space: Space, folder: str | Path, split: str) -> Judgements:
    """The captions of one split whose photos are rows of the index.

    A photo is found by its id, or by the place of its file below the folder, with as many folders
    in front as there are: an index of `images/` and one of its captions.jsonl both serve.

    Raises:
        ConfigError: none of the photos is in the index, or several would be one row
    """
    pack = CaptionPack.read(folder, split)
    items, _ = caption_items(pack, space)
    known = _ids(index)
    rows = _rows([(photo.id, photo.image) for photo in pack.photos], known)
    found = [(item, rows[i]) for item, i in zip(items, pack.owner, strict=True) if rows[i]]
    if not found:
        raise ConfigError(_none_indexed(pack, split, known))
    return Judgements([item for item, _ in found], [[row] for _, row in found])


def captioned(index: Index, space: Space, folder: str | Path, split: str) -> Captioned:
    """The captions of one split whose photos are rows of an index, with a judge made of all.

    Captions of other splits are no questions, but they tell whether a hit matches.

    Raises:
        ConfigError: none of the photos is in the index
    """
    pack = CaptionPack.read(folder, split)
    known = _ids(index)
    records = read_caption_list(Path(folder).expanduser() / CAPTIONS)
    places = _rows([(record.id, record.image) for record in records], known)
    captions = {
        row: record.captions
        for row, record in zip(places, records, strict=True)
        if row is not None and record.captions
    }
    judge = CaptionRelevance.of(captions)
    words = Vocabulary.of([judge.words_of(row) for row in captions], gallery=len(captions))
    items, _ = caption_items(pack, space)
    rows = _rows([(photo.id, photo.image) for photo in pack.photos], known)
    found = [
        (Question(text, item, judge.words_of(rows[i])), rows[i])
        for text, item, i in zip(pack.captions, items, pack.owner, strict=True)
        if rows[i] is not None
    ]
    if not found:
        raise ConfigError(_none_indexed(pack, split, known))
    return Captioned([q for q, _ in found], [row for _, row in found], judge, words)


def _ids(index: Index) -> dict[str, str]:
    """The rows of an index, and where the photo of each lies, "" where that is not known."""
    names = ["id", *(n for n in ("uri",) if n in index.columns)]
    columns = [[column.to_pylist() for column in batch.columns] for batch in index.scan(names)]
    return {
        row: uri or ""
        for own in columns
        for row, uri in zip(own[0], own[-1] if len(own) > 1 else [""] * len(own[0]), strict=True)
    }


def _none_indexed(pack: CaptionPack, split: str, known: Mapping[str, str]) -> str:
    return (
        f"none of the {len(pack.photos)} photos of the split {split!r} is in the index; its "
        f"ids are like {sorted(map(str, known))[:3]}"
    )


def _rows(photos: Sequence[tuple[str, Path | bytes]], known: Mapping[str, str]) -> list[str | None]:
    """The row of each photo, or None.

    Raises:
        ConfigError: several photos would be the same row
    """
    rows = [next((n for n in _names(*photo) if n in known), None) for photo in photos]
    shared = [row for row, count in Counter(rows).items() if row is not None and count > 1]
    if shared:
        names = [name for (name, _), row in zip(photos, rows, strict=True) if row == shared[0]]
        raise ConfigError(
            f"the photos {names[:3]} would all be the row {shared[0]!r} of the index; index the "
            "folder that their captions.jsonl lies in, so that rows are named as photos are"
        )
    return [
        row if row is not None and _may_be(image, known[row]) else None
        for (_, image), row in zip(photos, rows, strict=True)
    ]


def _may_be(image: Path | bytes, uri: str) -> bool:
    """Whether a photo can be that of a row: not where both are there and differ."""
    if not uri or not isinstance(image, Path):
        return True
    try:
        theirs, mine = read_uri(uri), read_photo(image)
    except (OSError, FourMError):
        return True
    return theirs == mine


def _names(name: str, image: Path | bytes) -> Iterator[str]:
    """What a row of a photo may be called: its id, or its place with more or fewer folders."""
    yield name
    if isinstance(image, Path):
        parts = image.parts
        yield from ("/".join(parts[i:]) for i in range(len(parts)))
