"""Photos with captions, read from a folder and embedded, as an evaluation needs them.

The folder holds ``captions.jsonl`` with id, file, captions and split a line. Every caption is a
query of its own; a caption that is longer than the model reads is cut and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fourm_lite.data.records import Record, by_photo, read_caption_list
from fourm_lite.embedders.base import Reads
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.centre import Floats, gallery_centre, unit
from fourm_lite.search.spaces import TEXT, Codes, Item, ModelSpace, Space

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTIONS = "captions.jsonl"
Tell = Callable[[str, int, int], None]
"""Called with (what is done, done, in all)."""


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
        owner = [i for i, photo in enumerate(photos) for _ in photo.captions]
        texts = [text for photo in photos for text in photo.captions]
        left_out = len(records) - len(photos)
        return cls(tuple(photos), tuple(texts), np.array(owner), split, left_out)

    def spread(self, limit: int | None) -> tuple[Record, ...]:
        """At most `limit` of the photos, drawn evenly; all of them for None."""
        if limit is None or limit >= len(self.photos):
            return self.photos
        return tuple(
            self.photos[i] for i in np.linspace(0, len(self.photos) - 1, limit).astype(int)
        )

    def pictures(self, batch_size: int) -> Iterator[list[Image]]:
        """The photos, some at a time.

        Raises:
            FourMError: one cannot be opened
        """
        for start in range(0, len(self.photos), batch_size):
            yield self.pictures_at(slice(start, start + batch_size))

    def read_by(self, reads: Reads, batch_size: int) -> Iterator[list[Any]]:
        """What a space reads of the photos, some at a time: themselves, or ids of their regions."""
        if reads == "pictures":
            yield from self.pictures(batch_size)
            return
        for start in range(0, len(self.photos), batch_size):
            yield [photo.id for photo in self.photos[start : start + batch_size]]

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
    items: tuple[Item, ...]
    cut: int


def embed_pack(
    pack: CaptionPack,
    space: Space,
    *,
    center: bool = True,
    batch_size: int = 32,
    tell: Tell | None = None,
) -> Embedded:
    """The photos and captions of a pack as vectors.

    Where the tokenizer has no mean and `center` is asked for, the gallery's own is taken off.
    """
    space, images, codes = embed_photos(
        pack, space, center=center, batch_size=batch_size, tell=tell
    )
    items, cut = caption_items(pack, space)
    told = None if tell is None else lambda done, total: tell("captions", done, total)
    texts = space.embed_items(items, batch_size=batch_size, progress=told)
    return Embedded(pack, space, images, texts, codes, items, cut)


def embed_photos(
    pack: CaptionPack,
    space: Space,
    *,
    center: bool = True,
    batch_size: int = 32,
    tell: Tell | None = None,
) -> tuple[Space, Floats, Codes | None]:
    """The gallery of a pack, and the space with the centre that was used."""
    parts: list[Floats] = []
    for pictures in pack.read_by(space.reads, batch_size):
        if isinstance(space, ModelSpace):
            parts.append(space.raw_pictures(pictures))
        else:
            parts.append(space.embed_pictures(pictures, batch_size=batch_size)[0])
        if tell is not None:
            tell("photos", sum(map(len, parts)), len(pack.photos))
    raw = np.concatenate(parts)
    if not isinstance(space, ModelSpace):
        return space, raw, None
    if center and space.centre.mean is None:
        space = dataclasses.replace(space, centre=gallery_centre(raw.mean(axis=1)))
    return space, unit(space.centre(raw).mean(axis=1)), space.codes(raw.mean(axis=1))


def caption_items(pack: CaptionPack, space: Space) -> tuple[tuple[Item, ...], int]:
    """A query for each caption, and how many captions were too long and cut."""
    return text_items(pack.captions, space)


def text_items(texts: Sequence[str], space: Space) -> tuple[tuple[Item, ...], int]:
    """A query for each text, and how many were too long and cut.

    None is refused: one that the model cannot read counts as one that it answers wrongly.
    """
    if not isinstance(space, ModelSpace):
        return tuple({TEXT: text} for text in texts), 0
    config = space.pipe.model.config
    entry = next((m for m in config.inputs if m.name == TEXT), None)
    if entry is None or entry.kind != "sequence":
        raise ConfigError(
            f"this model reads no '{TEXT}'; it reads {[m.name for m in config.inputs]}"
        )
    tokenizer = space.pipe.tokenizers.text()
    items: list[Item] = []
    cut = 0
    for text in texts:
        ids = tokenizer.encode(text)
        cut += len(ids) + 1 > entry.max_tokens
        items.append({TEXT: [*ids[: entry.max_tokens - 1], tokenizer.eos]})
    return tuple(items), cut


def protocol_of(data: Embedded, center: bool) -> dict[str, Any]:
    """What a figure must be quoted with."""
    space, pack = data.space, data.pack
    return {
        "protocol": "captions to photos and photos to captions, every caption a query",
        "split": pack.split,
        "photos": len(pack.photos),
        "photos_without_caption": pack.without_caption,
        "captions_cut": data.cut,
        "center": center and isinstance(space, ModelSpace),
        **space_facts(space),
    }


def space_facts(space: Space) -> dict[str, Any]:
    """Who made the vectors, and how they are compared."""
    facts: dict[str, Any] = {"space": space.name}
    facts |= {k: v for k, v in space.provenance().items() if k in ("model", "tokenizer")}
    if not isinstance(space, ModelSpace):
        return {**facts, "gallery": "model", "decode": None}
    plain = space.centre.mean is None
    return {
        **facts,
        "gallery": space.names.get("gallery", "model"),
        "decode": space.decode,
        "steps": space.steps,
        "samples": space.samples,
        "centre": space.centre.source,
        "score": "cosine" if plain else f"centred cosine, mean of the {space.centre.source}",
    }
