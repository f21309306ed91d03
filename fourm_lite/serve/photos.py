"""The photos of an index by their ids, small; a file is shown only if it is what was indexed.

An id is looked up in the index and never in the file system. The `uri` of its row is opened only
where the row also holds a hash of the photo's bytes, and shown only if that still fits: neither a
file that took a photo's place nor one that a strange index names can be seen.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from fourm_lite.errors import FourMError
from fourm_lite.modalities.pictures import open_rgb, thumbnail
from fourm_lite.photos.sources import read_uri
from fourm_lite.search.engine import Search
from fourm_lite.search.index.loading import content_hash
from fourm_lite.serve.errors import Refused
from fourm_lite.serve.questions import known_id

SIDES = (64, 128, 256, 512, 1024)
HELD = 2_000
"""Thumbnails that are kept, of some 15 kB each."""


class Photos:
    """Thumbnails of an index's photos; those asked for last are kept."""

    def __init__(self, search: Search, pixels: int) -> None:
        self._search, self._pixels = search, pixels
        self._held = lru_cache(maxsize=HELD)(self._drawn)

    def thumbnail(self, name: str, side: int) -> bytes:
        """A JPEG of at most `side` pixels a side.

        Raises:
            Refused: there is no such row, or its photo is not what was indexed
        """
        if side not in SIDES:
            raise Refused(400, f"side is one of {', '.join(map(str, SIDES))}, got {side}")
        uri, mark = self._place(name)
        return self._held(uri, mark, side)

    def _place(self, name: str) -> tuple[str, int]:
        index = self._search.index
        if not {"uri", "content_hash"} <= set(index.columns):
            raise Refused(
                404, "the rows of this index do not tell their photos; make it by fourm-lite index"
            )
        try:
            row: dict[str, Any] = index.get(
                [known_id(name, self._search)], ["uri", "content_hash"]
            ).to_pylist()[0]
        except FourMError:
            raise Refused(404, f"the index has no row {name[:80]!r}") from None
        if not isinstance(row["uri"], str) or row["content_hash"] is None:
            raise Refused(404, f"the row {name[:80]!r} has no photo")
        return row["uri"], row["content_hash"]

    def _drawn(self, uri: str, mark: int, side: int) -> bytes:
        try:
            data = read_uri(uri)
        except (FourMError, OSError):
            raise Refused(404, "the photo of this row cannot be read any more") from None
        if content_hash(data) != mark:
            raise Refused(404, "the photo of this row has changed since it was indexed")
        out = io.BytesIO()
        picture = thumbnail(open_rgb(data, max_pixels=self._pixels), side)
        picture.save(out, "JPEG", quality=85)
        return out.getvalue()
