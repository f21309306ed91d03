"""Structured values as text and back, one file a format; text is all that the model sees.

`FORMATS` finds a format by its name: `FORMATS["boxes"].chunks(value)`, `.parse(text)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fourm_lite.errors import UnknownNameError, suggest
from fourm_lite.tokenization.randomness import RandomSource
from fourm_lite.tokenization.sequences.boxes import boxes_to_chunks, text_to_boxes
from fourm_lite.tokenization.sequences.color_palette import palette_to_chunks, text_to_palette
from fourm_lite.tokenization.sequences.human_poses import people_to_chunks, text_to_people
from fourm_lite.tokenization.sequences.metadata import metadata_to_chunks, text_to_metadata
from fourm_lite.tokenization.sequences.sam_instances import points_to_chunks, text_to_points


@dataclass(frozen=True)
class SequenceFormat:
    """How a structured value is said in words, and read again.

    Units:
        chunks: a value, and a source where the format has a random order -> texts; a masked
            sequence keeps or hides each text that `by_chunk` formats give as a whole
        parse: a text, however broken, -> the part of the value that can be read
    """

    chunks: Callable[[Any, RandomSource | None], list[str]]
    parse: Callable[[str], Any]
    by_chunk: bool = False

    def text(self, value: Any, source: RandomSource | None = None) -> str:
        """The whole value as one text."""
        return " ".join(self.chunks(value, source))


FORMATS: dict[str, SequenceFormat] = {
    "text": SequenceFormat(lambda value, _: [value], str),
    "boxes": SequenceFormat(lambda value, _: boxes_to_chunks(value), text_to_boxes),
    "metadata": SequenceFormat(
        lambda value, source: metadata_to_chunks(
            value if source is None else dict(source.shuffled(list(value.items())))
        ),
        text_to_metadata,
        by_chunk=True,
    ),
    "human_poses": SequenceFormat(
        lambda value, source: people_to_chunks(value, source=source), text_to_people
    ),
    "color_palette": SequenceFormat(lambda value, _: palette_to_chunks(value), text_to_palette),
    "sam_instances": SequenceFormat(
        lambda value, source: points_to_chunks(value, source=source), text_to_points
    ),
}


def sequence_format(name: str) -> SequenceFormat:
    """The format of that name.

    Raises:
        UnknownNameError: there is none
    """
    if name not in FORMATS:
        raise UnknownNameError(f"no sequence format is called {name!r}.{suggest(name, FORMATS)}")
    return FORMATS[name]
