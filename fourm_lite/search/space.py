"""What search asks of whatever makes its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import Reads
from fourm_lite.progress import Progress
from fourm_lite.search.whitening import Floats

Item = Mapping[str, Any]
Codes = npt.NDArray[np.int64]
MODEL = "model"
"""The gallery that a model makes itself, from pixels."""
PICTURE, TEXT = "rgb", "caption"
"""What a picture and a text are called in an item."""


class Space(Protocol):
    """Vectors of items and pictures that can be compared with each other."""

    @property
    def name(self) -> str:
        """The name of the space, as it stands in the manifest of an index."""
        ...

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of what decides whether vectors can be compared."""
        ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """The same, and hashes of who makes the rows of a gallery."""
        ...

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """What earlier versions wrote for one of `fingerprints`; made when it is asked for."""
        ...

    @property
    def width(self) -> int:
        """The width E of a vector."""
        ...

    @property
    def reads(self) -> Reads:
        """What a picture is to it: a photo, or the regions that a detector found in one."""
        ...

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has; None where vectors have no codes."""
        ...

    def embed_items(
        self, items: Sequence[Item], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of queries."""
        ...

    def embed_pictures(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, Codes | None]:
        """Unit vectors float32[N, E] of a gallery, and their codes int64[N, L] where there are."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest: model, tokenizer, preprocessing."""
        ...
