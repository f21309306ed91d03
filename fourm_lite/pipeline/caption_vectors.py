"""What a sentence encoder says of a text, as an input that comes with the text itself.

It is used where it is at hand: a caption is read by its words without it, and by it alone where
the model's vocabulary holds no word of the caption.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from fourm_lite.batch import Tokens
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, FourMError, ShapeError
from fourm_lite.modalities.spec import Modality
from fourm_lite.tokenization.words.text import TextTokenizer

Source = Callable[[Modality], Any]
log = logging.getLogger(__name__)


def sentence_encoder(entry: Modality, source: Source) -> NetworkEmbedder | None:
    """The encoder of features that come with a text; None: it is not at hand.

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
    try:
        return load_embedder(f"sentence:{place}")
    except CheckpointError:
        raise
    except FourMError as error:  # the library that runs it is not installed
        log.warning("sentence vectors are left out, texts are read by their words: %s", error)
        return None


def given_texts(
    source: Source, given: Mapping[str, Any], entries: Mapping[str, Modality]
) -> dict[str, str]:
    """The features that come with the texts of an item: name -> the text."""
    texts = {m.name: given.get(m.raw or "") for m in entries.values() if m.kind == "features"}
    return {
        name: text
        for name, text in texts.items()
        if name not in given
        and isinstance(text, str)
        and sentence_encoder(entries[name], source) is not None
    }


def vector_of_text(encoder: NetworkEmbedder, entry: Modality, text: str) -> Tokens:
    """The vector that a text has from the encoder of a features modality.

    Raises:
        ShapeError: it is of another width
    """
    rows = torch.from_numpy(encoder.embed_text(text, normalize=False))
    if rows.shape[1] != entry.channels:
        raise ShapeError(
            f"'{entry.name}' expects vectors of width {entry.channels}, '{encoder.name}' gives "
            f"{rows.shape[1]}: it belongs to another model"
        )
    return Tokens.given(rows[None], length=1)


def all_unknown(text: str, tokenizer: TextTokenizer) -> bool:
    """Whether a vocabulary holds no word of a text."""
    unknown, count = tokenizer.unknown_words(text)
    return bool(count and len(unknown) == count) or (set(tokenizer.encode(text)) == {tokenizer.unk})
