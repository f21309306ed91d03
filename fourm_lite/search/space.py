"""What search asks of whatever makes its vectors: a 4M model, a dual encoder, or anything else.

Nothing above asks which of them it has: what differs is a value of the space, and its absence says
what the space cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import Reads
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import Progress
from fourm_lite.search.search_file import FittedSearch
from fourm_lite.search.whitening import Centre, QueryWhitening
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


class Space(Protocol):
    """Vectors of queries and of a gallery's pictures that can be compared with each other."""

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
    def joins(self) -> bool:
        """Whether one query may hold several modalities; else their vectors are added."""
        ...

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has; None where vectors have no codes."""
        ...

    @property
    def decoder(self) -> Callable[[npt.NDArray[Any]], Floats] | None:
        """Codes int[N, L] -> unit vectors float32[N, E]; None where vectors have no codes."""
        ...

    @property
    def predictor(self) -> Predictor | None:
        """What reranks by likelihood; None where nothing is predicted."""
        ...

    @property
    def fitted(self) -> FittedSearch | None:
        """What is kept beside the model about reranking and confidence."""
        ...

    @property
    def whitening(self) -> QueryWhitening | None:
        """What is done to queries after the centre is taken off."""
        ...

    @property
    def centre(self) -> Centre:
        """What is taken off both sides before they are compared."""
        ...

    @property
    def takes_centre(self) -> bool:
        """Whether anything may be taken off; else vectors are compared as they come."""
        ...

    @property
    def wants_centre(self) -> bool:
        """Whether it takes one and was not opened to be compared without."""
        ...

    def with_centre(self, centre: Centre) -> Self:
        """The space with another centre, where it takes one."""
        ...

    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """A query for each text, and how many were too long and cut; none is left out."""
        ...

    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of queries."""
        ...

    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, Codes | None]:
        """Unit vectors float32[N, E] of a gallery, and their codes int64[N, L] where there are."""
        ...

    def raw_documents(self, pictures: Sequence[Any]) -> Floats:
        """Vectors float32[N, samples, E] of a gallery before anything is taken off."""
        ...

    def compared(self, raw: Floats) -> Floats:
        """Unit vectors float32[N, E] of raw ones float32[N, samples, E]."""
        ...

    def codes(self, raw: Floats) -> Codes | None:
        """Codes int64[N, L] of raw vectors float32[N, E]; None where vectors have none."""
        ...

    def dispersion(self, items: Sequence[Inputs], samples: int) -> Floats | None:
        """How much sampled vectors of a query differ, float32[N]; None where none are sampled."""
        ...

    def check_gallery(self) -> None:
        """Refuses a network for galleries whose vectors are of another width."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest: model, tokenizer, preprocessing."""
        ...

    def comparison(self) -> dict[str, Any]:
        """How vectors are made and compared: what a figure must be quoted with."""
        ...


class FormerVerbs:
    """The names that `encode_query` and `encode_document` had in 0.1."""

    encode_query: Callable[..., Any]
    encode_document: Callable[..., Any]

    def embed_items(self, items: Sequence[Inputs], **options: Any) -> Any:
        """As `encode_query`."""
        return self.encode_query(items, **options)

    def embed_pictures(self, pictures: Sequence[Any], **options: Any) -> Any:
        """As `encode_document`."""
        return self.encode_document(pictures, **options)
