"""Captions whose photos are in an index, as queries with known answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fourm_lite.errors import ConfigError
from fourm_lite.retrieval.index import Index
from fourm_lite.search.calibrate import Truth
from fourm_lite.search.packs import CaptionPack, caption_items
from fourm_lite.search.spaces import Space


def captions_of(index: Index, space: Space, folder: str | Path, split: str) -> Truth:
    """The captions of one split whose photos are rows of the index.

    A photo is found by its id, or by the place of its file below the folder, with any folders in
    front: an index of `images/` and one of its captions.jsonl both serve.

    Raises:
        ConfigError: none of the photos is in the index
    """
    pack = CaptionPack.read(folder, split)
    items, _ = caption_items(pack, space)
    known = {name for batch in index.scan(["id"]) for name in batch.column(0).to_pylist()}
    rows = [_row(photo.id, photo.image, known) for photo in pack.photos]
    found = [(item, rows[i]) for item, i in zip(items, pack.owner, strict=True) if rows[i]]
    if not found:
        raise ConfigError(
            f"none of the {len(pack.photos)} photos of the split {split!r} is in the index; its "
            f"ids are like {sorted(map(str, known))[:3]}"
        )
    return Truth([item for item, _ in found], [[row] for _, row in found])


def _row(name: str, image: Path | bytes, known: set[str]) -> str | None:
    return next((n for n in _names(name, image) if n in known), None)


def _names(name: str, image: Path | bytes) -> Iterator[str]:
    yield name
    if isinstance(image, Path):
        parts = image.parts
        yield from ("/".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
