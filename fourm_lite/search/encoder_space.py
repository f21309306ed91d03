"""The space of an encoder's own tokens, for models that predict no global embedding.

AION-1's and TerraMind's users take the mean over the tokens. Any subset of modalities is one item,
in a query as in a gallery; a file of a gallery is the value of one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fourm_lite.batch import TokenBatch
from fourm_lite.embedders.base import Reads, sampled_fingerprint
from fourm_lite.errors import ConfigError
from fourm_lite.families.masked import fork_of
from fourm_lite.model.load import fitted
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.placing import placed
from fourm_lite.pipeline.pooled import pooled_vectors
from fourm_lite.pipeline.readers import collate
from fourm_lite.progress import Progress, batches
from fourm_lite.search.gallery import item_of
from fourm_lite.search.space import MODEL, PICTURE, TEXT, Inputs, Space
from fourm_lite.unit import Floats


@dataclass(frozen=True)
class EncoderSpace(Space):
    """Means over the tokens of a model's encoder.

    Args:
        pipe: the model with its tokenizers
        source: what the model was asked for by, to be written down
        tokenizers: likewise
    """

    pipe: FourMPipeline
    source: str | None = None
    tokenizers: tuple[str, ...] = ()

    joins: ClassVar[bool] = True

    @property
    def reads(self) -> Reads:
        """Items of modalities and values, and files that are one."""
        return "items"

    @property
    def name(self) -> str:
        """The family, whose encoder it is."""
        return f"{fork_of(self.pipe.model.config.modalities).name}:encoder"

    @property
    def width(self) -> int:
        """The width of a token."""
        return self.pipe.model.config.dim

    @cached_property
    def identity(self) -> dict[str, str]:
        """The weights decide, and the type in which they count."""
        text = f"{sampled_fingerprint(self.pipe.model)} {self.pipe.model.dtype}"
        return {"model": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """There were none before."""
        return ()

    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """Captions, where the model reads any.

        Raises:
            ConfigError: it does not
        """
        names = [m.name for m in self.pipe.model.config.inputs]
        if TEXT not in names:
            raise ConfigError(f"this model reads no '{TEXT}'; it reads {names}")
        return tuple({TEXT: text} for text in texts), 0

    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of any subsets of modalities; sizes may differ."""
        vectors = np.empty((len(items), self.width), np.float32)
        for part in batches(range(len(items)), batch_size, progress):
            vectors[part] = self._vectors([self._read(items[place]) for place in part])
        return vectors

    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, None]:
        """Unit vectors float32[N, E] of a gallery's items, files among them; there are no codes."""
        items = [one if isinstance(one, Mapping) else {PICTURE: one} for one in pictures]
        return self.encode_query(items, batch_size=batch_size, progress=progress), None

    @property
    def opener(self) -> Callable[[bytes], Any]:
        """The model reads an item as soon as it is opened."""
        return self.open_document

    def open_document(self, data: bytes) -> TokenBatch:
        """An item of a gallery as a batch of one, so that a damaged one is told of alone.

        Raises:
            FourMError: it holds no value of a modality of the model
        """
        return self._read(item_of(data))

    def _read(self, item: Inputs) -> TokenBatch:
        if isinstance(item, TokenBatch):
            return item
        return self.pipe.read([placed(item, self.pipe.model.config.inputs)])

    def _vectors(self, items: Sequence[TokenBatch]) -> Floats:
        """Those of one set of modalities and one size are embedded together."""
        model, alike = self.pipe.model, dict[Any, list[int]]()
        for place, item in enumerate(items):
            pixels = tuple(item[n].value.shape for n in item if item[n].value.ndim == 4)
            alike.setdefault((*item, pixels), []).append(place)
        vectors = np.empty((len(items), self.width), np.float32)
        for places in alike.values():
            batch = collate([items[place] for place in places])
            vectors[places] = pooled_vectors(fitted(model, batch, []), batch)
        return vectors

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest."""
        extra: dict[str, Any] = {"gallery": MODEL, "centre": "none"}
        if self.tokenizers:
            extra["tokenizers"] = list(self.tokenizers)
        return {"model": self.source, "preprocessing": "of the modality's codec", "extra": extra}

    def comparison(self) -> dict[str, Any]:
        """Plain cosines of the encoder's means."""
        return {"gallery": MODEL, "decode": None, "score": "cosine"}
