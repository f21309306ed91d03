"""What search asks of whatever makes its vectors: a 4M model, a dual encoder, or anything else.

Nothing above asks which of them it has: what differs is a value of the space, and its absence says
what the space cannot do. `Space` itself is the plainest: no codes, no centre, nothing predicted,
as the vectors of dual encoders (CLIP, ALIGN, MOFI, ...) are compared as the network gives them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import NetworkEmbedder, Reads
from fourm_lite.errors import FourMError, UnknownNameError
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import Progress, batches, of_total
from fourm_lite.search.search_file import FittedSearch
from fourm_lite.search.whitening import UNCENTRED, Centre, QueryWhitening
from fourm_lite.unit import Floats

Inputs = Mapping[str, Any]
"""One query: modality -> value."""
Codes = npt.NDArray[np.int64]
MODEL = "model"
"""The gallery that a model makes itself, from pixels."""
PICTURE, TEXT = "rgb", "caption"
"""What a picture and a text are called in a query."""


class Predictor(Protocol):
    """A 4M model that says how likely codes and texts are."""

    @property
    def pipe(self) -> FourMPipeline:
        """The model with its tokenizers."""
        ...

    @property
    def target(self) -> Modality:
        """The embedding that it predicts."""
        ...


class Space(ABC):
    """Vectors of queries and of a gallery's pictures that can be compared with each other."""

    joins: ClassVar[bool] = False
    """Whether one query may hold several modalities; else their vectors are added."""
    takes_centre: ClassVar[bool] = False
    """Whether anything may be taken off; else vectors are compared as they come."""
    without_likelihood: ClassVar[str] = (
        "a dual encoder has no likelihood to rerank by; use a 4M model, or another "
        "network (--reranker joint:joint_space or hf:FOLDER, reranker=)"
    )
    """Why there is no `predictor`, and what to do instead."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the space, as it stands in the manifest of an index."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Hashes of what decides whether vectors can be compared."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """The same, and hashes of who makes the rows of a gallery."""
        return self.identity

    @abstractmethod
    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """What earlier versions wrote for one of `fingerprints`; made when it is asked for."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The width E of a vector."""

    @property
    def reads(self) -> Reads:
        """What a picture is to it: a photo, or the regions that a detector found in one."""
        return "pictures"

    @property
    def short_side(self) -> int | None:
        """Pixels of a photo's short side that it needs; None: all of them."""
        return None

    @property
    def opener(self) -> Callable[[bytes], Any] | None:
        """What opens an item of a gallery, where that needs the model."""
        return None

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has; None where vectors have no codes."""
        return None

    @property
    def decoder(self) -> Callable[[npt.NDArray[Any]], Floats] | None:
        """Codes int[N, L] -> unit vectors float32[N, E]; None where vectors have no codes."""
        return None

    @property
    def predictor(self) -> Predictor | None:
        """What reranks by likelihood; None where nothing is predicted."""
        return None

    @property
    def fitted(self) -> FittedSearch | None:
        """What is kept beside the model about reranking and confidence."""
        return None

    @property
    def whitening(self) -> QueryWhitening | None:
        """What is done to queries after the centre is taken off."""
        return None

    @property
    def centre(self) -> Centre:
        """What is taken off both sides before they are compared."""
        return UNCENTRED

    @property
    def wants_centre(self) -> bool:
        """Whether it takes one and was not opened to be compared without."""
        return False

    def with_centre(self, centre: Centre) -> Self:
        """The space with another centre, where it takes one."""
        return self

    @abstractmethod
    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """A query for each text, and how many were too long and cut; none is left out."""

    @abstractmethod
    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of queries."""

    @abstractmethod
    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, Codes | None]:
        """Unit vectors float32[N, E] of a gallery, and their codes int64[N, L] where there are."""

    def raw_documents(self, pictures: Sequence[Any]) -> Floats:
        """Vectors float32[N, samples, E] of a gallery before anything is taken off."""
        return self.encode_document(pictures)[0][:, None]

    def compared(self, raw: Floats) -> Floats:
        """Unit vectors float32[N, E] of raw ones float32[N, samples, E]."""
        return raw[:, 0]

    def codes(self, raw: Floats) -> Codes | None:
        """Codes int64[N, L] of raw vectors float32[N, E]; None where vectors have none."""
        return None

    def dispersion(self, items: Sequence[Inputs], samples: int) -> Floats | None:
        """How much sampled vectors of a query differ, float32[N]; None where none are sampled."""
        return None

    def check_gallery(self) -> None:  # noqa: B027  # a network that makes its own has none
        """Refuses a network for galleries whose vectors are of another width."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest: model, tokenizer, preprocessing."""

    @abstractmethod
    def comparison(self) -> dict[str, Any]:
        """How vectors are made and compared: what a figure must be quoted with."""

    def embed_items(self, items: Sequence[Inputs], **options: Any) -> Any:
        """`encode_query`, as it was called in 0.1."""
        return self.encode_query(items, **options)

    def embed_pictures(self, pictures: Sequence[Any], **options: Any) -> Any:
        """`encode_document`, as it was called in 0.1."""
        return self.encode_document(pictures, **options)


@dataclass(frozen=True)
class DualEncoderSpace(Space):
    """The space of a dual encoder: one picture or one text a vector."""

    embedder: NetworkEmbedder
    source: str = ""

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
    def short_side(self) -> int | None:
        """Pixels of a photo's short side that the network needs."""
        return self.embedder.short_side

    @property
    def identity(self) -> dict[str, str]:
        """Hash of weights and preprocessing."""
        return {"network": self.embedder.space.fingerprint[:16]}

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """Those of the same pixels under the fields that preprocessing had."""
        return tuple(space.fingerprint[:16] for space in self.embedder.former_spaces)

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
        kinds = [self._kind(item) for item in items]
        order = sorted(range(len(items)), key=kinds.__getitem__, reverse=True)  # texts first
        vectors = np.empty((len(items), self.width), np.float32)
        for part in batches(order, batch_size, progress):
            for kind in {kinds[place] for place in part}:
                some = [place for place in part if kinds[place] == kind]
                values = [next(iter(items[place].values())) for place in some]
                if kind == "text":
                    vectors[some] = self.embedder.embed_text([str(v) for v in values], batch_size)
                else:
                    vectors[some] = self.embedder.embed_image(values, batch_size)
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
        told = of_total(progress, len(pictures))
        return self.embedder.embed_image(pictures, batch_size, progress=told), None

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
