"""What a network says of a text or a picture, as an input that comes with the value itself.

It is used where it is at hand: a caption is read by its words without it, and by it alone where
the model's vocabulary holds no word of the caption; a picture is read by its pixels without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fourm_lite.batch import Tokens
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, FourMError, ShapeError
from fourm_lite.modalities.pictures import as_picture
from fourm_lite.modalities.spec import Modality
from fourm_lite.tokenization.words.text import TextTokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

Source = Callable[[Modality], Any]
log = logging.getLogger(__name__)
_FAMILIES = {"tokenizer.json": "sentence", "config.json": "timm"}
"""The family of an encoder by a file of its folder; the first that is there counts."""


def encoder_of(entry: Modality, source: Source) -> NetworkEmbedder | None:
    """The encoder of features that come with a text or a picture; None: it is not at hand.

    Args:
        entry: a features modality
        source: where what belongs to a modality lies, as `Tokenizers.source`

    Raises:
        CheckpointError: what is named for it is none
    """
    place = None if entry.raw is None else source(entry)
    return place if place is None or isinstance(place, NetworkEmbedder) else _opened(str(place))


@lru_cache(maxsize=4)
def _opened(place: str) -> NetworkEmbedder | None:
    held = [family for file, family in _FAMILIES.items() if (Path(place) / file).is_file()]
    try:
        return load_embedder(f"{held[0] if held else 'sentence'}:{place}")
    except CheckpointError:
        raise
    except FourMError as error:  # the library that runs it is not installed
        log.warning("vectors of '%s' are left out, values are read without: %s", place, error)
        return None


def beside(
    source: Source, given: Mapping[str, Any], entries: Mapping[str, Modality]
) -> dict[str, Any]:
    """The features that come with the texts and pictures of an item: name -> text or picture."""
    of = {m.name: m.raw for m in entries.values() if m.kind == "features" and m.raw in given}
    return {
        name: given[raw]
        for name, raw in of.items()
        if raw is not None
        and name not in given
        and is_raw(entries[raw], given[raw])
        and encoder_of(entries[name], source) is not None
    }


def is_raw(entry: Modality, value: Any) -> bool:
    """Whether a value is a text or a picture, and not ids or normalised pixels."""
    from PIL.Image import Image

    if entry.kind == "sequence":
        return isinstance(value, str)
    whole = str(getattr(value, "dtype", "")).removeprefix("torch.") == "uint8"
    return entry.kind == "pixels" and (whole or isinstance(value, str | Path | bytes | Image))


def vector_of(source: Source, entry: Modality, value: Any) -> Tokens:
    """The vector that a text or a picture has from the encoder of a features modality.

    Raises:
        FourMError: the encoder is not at hand
        ShapeError: it gives vectors of another width
    """
    encoder = encoder_of(entry, source)
    if encoder is None:
        raise FourMError(f"'{entry.name}' needs the network '{entry.tokenizer}', which is not here")
    rows = torch.from_numpy(_embedded(encoder, value))
    if rows.shape[1] != entry.channels:
        raise ShapeError(
            f"'{entry.name}' expects vectors of width {entry.channels}, '{encoder.name}' gives "
            f"{rows.shape[1]}: it belongs to another model"
        )
    return Tokens.given(rows[None], length=1)


def _embedded(encoder: NetworkEmbedder, value: Any) -> npt.NDArray[Any]:
    if "text" in encoder.can:
        return encoder.embed_text(value, normalize=False)
    return encoder.embed_image(as_picture(value), normalize=False)


def all_unknown(text: str, tokenizer: TextTokenizer) -> bool:
    """Whether a vocabulary holds no word of a text."""
    unknown, count = tokenizer.unknown_words(text)
    return bool(count and len(unknown) == count) or (set(tokenizer.encode(text)) == {tokenizer.unk})
