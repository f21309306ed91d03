"""Structured values as text and back, one entry a format; text is all that the model sees.

`FORMATS` finds a format by its name: `FORMATS["boxes"].text(value)`, `.parse(text)`,
`.encode(value, tokenizer)`, `.decode(ids, tokenizer)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fourm_lite.errors import ConfigError, check_choice
from fourm_lite.modalities.forks import coords_of, place_text
from fourm_lite.modalities.values import Metadata
from fourm_lite.tokenization.vq.randomness import RandomSource
from fourm_lite.tokenization.words.instances import (
    BINS,
    Coordinate,
    boxes_to_chunks,
    people_to_chunks,
    points_to_chunks,
    read_fields,
    text_to_boxes,
    text_to_people,
    text_to_points,
)
from fourm_lite.tokenization.words.metadata import (
    metadata_to_chunks,
    palette_to_chunks,
    text_to_metadata,
    text_to_palette,
)
from fourm_lite.tokenization.words.text import TextTokenizer


@dataclass(frozen=True)
class SequenceFormat:
    """How a structured value is said in words, and read again.

    Units:
        say: a value, a source where the order is random, bins of a coordinate -> texts
        read: a text, however broken, and bins -> the part of the value that can be read
        by_chunk: span masking keeps or hides each of the texts as a whole, not token by token
        spell: a person's text in the words of the vocabulary
        is_plain: whether the value is a text in plain language
        numbers: of a value that is a row of numbers, how many, so that it is not taken for ids
    """

    say: Callable[[Any, RandomSource | None, int], list[str]]
    read: Callable[[str, int], Any]
    by_chunk: bool = False
    spell: Callable[[str], str] = str
    is_plain: bool = False
    numbers: int = 0

    def text(self, value: Any, source: RandomSource | None = None, bins: int = BINS) -> str:
        """The whole value as one text."""
        return " ".join(self.say(value, source, bins))

    def parse(self, text: str, bins: int = BINS) -> Any:
        """The part of a value that a text, however broken, still says."""
        return self.read(text, bins)

    def encode(
        self, value: Any, tokenizer: TextTokenizer, source: RandomSource | None = None
    ) -> list[list[int]]:
        """The value as chunks of token ids, single tokens where the format has no chunks.

        Raises:
            ConfigError: the vocabulary has too few coordinates for this value
        """
        texts = self.say(value, source, tokenizer.bins)
        for text in texts:
            _check_bins(text, tokenizer.bins)
        chunks = [tokenizer.encode(text) for text in texts]
        return chunks if self.by_chunk else [[i] for chunk in chunks for i in chunk]

    def decode(self, ids: Tensor, tokenizer: TextTokenizer) -> Any:
        """The value that token ids say, as far as they do.

        Shapes:
            ids: int64[L], merged, with or without [EOS] and padding
        """
        (text,) = tokenizer.detokenize(ids.reshape(1, -1))
        return self.read(text, tokenizer.bins)


def _check_bins(text: str, bins: int) -> None:
    for field in read_fields(text):
        if isinstance(field, Coordinate) and field.value >= bins:
            raise ConfigError(
                f"'v{field.axis}={field.value}' is beyond the {bins} coordinates of this text "
                "vocabulary; train it with more bins"
            )


def _say_metadata(value: Metadata, source: RandomSource | None, bins: int) -> list[str]:
    order = value if source is None else dict(source.shuffled(list(value.items())))
    return metadata_to_chunks(order, bins=bins)


FORMATS: dict[str, SequenceFormat] = {
    "text": SequenceFormat(
        lambda value, source, bins: [value], lambda text, bins: text, is_plain=True
    ),
    # TerraMind's captions end in the first sentinel
    "marked_text": SequenceFormat(
        lambda value, source, bins: [value],
        lambda text, bins: text,
        spell=lambda text: f"{text} [S_1]",
        is_plain=True,
    ),
    "place": SequenceFormat(
        lambda value, source, bins: [place_text(value)],
        lambda text, bins: coords_of(text),
        spell=lambda text: place_text(coords_of(text)),
        numbers=2,
    ),
    "boxes": SequenceFormat(
        lambda value, source, bins: boxes_to_chunks(value, bins=bins),
        lambda text, bins: text_to_boxes(text, bins=bins),
    ),
    "metadata": SequenceFormat(
        _say_metadata, lambda text, bins: text_to_metadata(text), by_chunk=True
    ),
    "human_poses": SequenceFormat(
        lambda value, source, bins: people_to_chunks(value, source=source, bins=bins),
        lambda text, bins: text_to_people(text, bins=bins),
    ),
    "color_palette": SequenceFormat(
        lambda value, source, bins: palette_to_chunks(value),
        lambda text, bins: text_to_palette(text),
    ),
    "sam_instances": SequenceFormat(
        lambda value, source, bins: points_to_chunks(value, source=source),
        lambda text, bins: text_to_points(text),
    ),
}


def sequence_format(name: str) -> SequenceFormat:
    """The format of that name.

    Raises:
        UnknownNameError: there is none
    """
    check_choice("a sequence format", name, of=FORMATS)
    return FORMATS[name]
