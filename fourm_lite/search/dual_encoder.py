"""Dual encoders (CLIP, ALIGN, MOFI, ...) behind the face of a space.

Their vectors are compared as the network gives them: no centre, no codes, nothing predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from fourm_lite.embedders.base import NetworkEmbedder, Reads
from fourm_lite.errors import FourMError, UnknownNameError
from fourm_lite.progress import Progress
from fourm_lite.search.space import MODEL, PICTURE, TEXT, FormerVerbs, Inputs
from fourm_lite.search.whitening import Centre
from fourm_lite.unit import Floats


@dataclass(frozen=True)
class DualEncoderSpace(FormerVerbs):
    """The space of a dual encoder: one picture or one text a vector."""

    embedder: NetworkEmbedder
    source: str = ""

    joins: ClassVar[bool] = False
    codebook_size: ClassVar[None] = None
    decoder: ClassVar[None] = None
    predictor: ClassVar[None] = None
    fitted: ClassVar[None] = None
    whitening: ClassVar[None] = None
    centre: ClassVar[Centre] = Centre()
    takes_centre: ClassVar[bool] = False
    wants_centre: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The network's own name of its space."""
        return self.embedder.space.name

    @property
    def width(self) -> int:
        """The width of a vector."""
        return self.embedder.dim

    @property
    def reads(self) -> Reads:
        """What the network takes for a picture."""
        return self.embedder.reads

    @property
    def identity(self) -> dict[str, str]:
        """Hash of weights and preprocessing."""
        return {"network": self.embedder.space.fingerprint[:16]}

    @property
    def fingerprints(self) -> dict[str, str]:
        """The network makes its own rows."""
        return self.identity

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """Those of the same pixels under the fields that preprocessing had."""
        return tuple(space.fingerprint[:16] for space in self.embedder.former_spaces)

    def with_centre(self, centre: Centre) -> Self:
        """The same: nothing is taken off."""
        return self

    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """The network's own tokenizer cuts what is too long."""
        return tuple({TEXT: text} for text in texts), 0

    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E]; every item is one picture or one text.

        Raises:
            UnknownNameError: another modality
            FourMError: several at once; dual encoders compose by arithmetic only
        """
        made: dict[str, list[int]] = {"text": [], "image": []}
        for place, item in enumerate(items):
            made[self._kind(item)].append(place)
        vectors = np.empty((len(items), self.width), np.float32)
        done = 0
        for kind, places in made.items():
            embed = self.embedder.embed_text if kind == "text" else self.embedder.embed_image
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                values = [next(iter(items[place].values())) for place in part]
                given = [str(v) for v in values] if kind == "text" else values
                vectors[part] = embed(given, batch_size)
                done += len(part)
                if progress is not None:
                    progress(done, len(items))
        return vectors

    def _kind(self, item: Inputs) -> str:
        if len(item) != 1:
            raise FourMError(
                f"a dual encoder embeds one picture or one text, got {sorted(item)}; compose "
                "them with compose='arithmetic'"
            )
        name = next(iter(item))
        if name in (TEXT, "text"):
            return "text"
        if name in (PICTURE, "image"):
            return "image"
        raise UnknownNameError(
            f"'{self.embedder.name}' embeds '{PICTURE}' and '{TEXT}', got {name!r}; other "
            "modalities need a 4M model"
        )

    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, None]:
        """Unit vectors float32[N, E] of pictures; there are no codes."""
        total = len(pictures)

        def told(done: int) -> None:
            if progress is not None:
                progress(done, total)

        return self.embedder.embed_image(pictures, batch_size, progress=told), None

    def raw_documents(self, pictures: Sequence[Any]) -> Floats:
        """Vectors float32[N, 1, E], of unit length already."""
        return self.encode_document(pictures)[0][:, None]

    def compared(self, raw: Floats) -> Floats:
        """As they are."""
        return raw[:, 0]

    def codes(self, raw: Floats) -> None:
        """There are none."""

    def dispersion(self, items: Sequence[Inputs], samples: int) -> None:
        """Nothing is sampled."""

    def check_gallery(self) -> None:
        """The network makes its own gallery."""

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest."""
        return {
            "model": self.source or self.embedder.name,
            "preprocessing": repr(self.embedder.preprocess),
            "extra": {"gallery": MODEL, "centre": "none"},
        }

    def comparison(self) -> dict[str, Any]:
        """Plain cosines of the network's own vectors."""
        return {"gallery": MODEL, "decode": None}
