"""Captions whose photos are in an index, as queries with known answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fourm_lite.data.records import read_caption_list
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.photos.content import read_file
from fourm_lite.photos.sources import read_uri
from fourm_lite.retrieval.index import Index
from fourm_lite.search.answers import Question
from fourm_lite.search.calibrate import Truth
from fourm_lite.search.confidence import Captioned
from fourm_lite.search.packs import CAPTIONS, CaptionPack, caption_items
from fourm_lite.search.relevance import Judge, Vocabulary
from fourm_lite.search.spaces import Space


def captions_of(index: Index, space: Space, folder: str | Path, split: str) -> Truth:
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
    return Truth([item for item, _ in found], [[row] for _, row in found])


def captioned(index: Index, space: Space, folder: str | Path, split: str) -> Captioned:
    """The captions of one split whose photos are rows of the index, and what all captions tell.

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
    judge = Judge.of(captions)
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
        theirs, mine = read_uri(uri), read_file(image)
    except (OSError, FourMError):
        return True
    return theirs == mine


def _names(name: str, image: Path | bytes) -> Iterator[str]:
    """What a row of a photo may be called: its id, or its place with more or fewer folders."""
    yield name
    if isinstance(image, Path):
        parts = image.parts
        yield from ("/".join(parts[i:]) for i in range(len(parts)))
